//! The file that records which mpirun a launcher started.

use std::{
    collections::BTreeSet,
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::artifacts::{job_numbers, user};

/// Name of the file, in the folder of the log files.
pub(crate) const FILE_NAME: &str = "session.json";

/// mpirun creates its folder within this time. A folder that was created later belongs to another process with the same
/// ID.
const CREATION_LIMIT: Duration = Duration::from_secs(60);

/// An mpirun as recorded in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SessionRecord {
    /// Name of the host.
    pub(super) host: String,
    /// Boot ID of the host.
    pub(super) boot_id: String,
    /// Process ID of mpirun.
    pub(super) mpirun: u32,
    /// Open MPI's number of the job, once it is known.
    pub(super) job: Option<u32>,
    /// Start time of mpirun, in seconds since 1970.
    pub(super) started: u64,
    /// Path of its folder.
    pub(super) folder: PathBuf,
    /// Device and inode of its folder, once it has been seen.
    pub(super) identity: Option<(u64, u64)>,
}

impl SessionRecord {
    /// Reads the file. Returns `None` if there is none, or if the file is something else.
    pub(super) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Writes the file on a best-effort basis, unless a file of something else has its name.
    pub(super) fn write(&self, path: &Path) {
        if std::fs::symlink_metadata(path).is_err() || Self::read(path).is_some() {
            let _ = std::fs::write(path, serde_json::to_vec(self).unwrap_or_default());
        }
    }

    /// Deletes the file, unless it is something else.
    pub(super) fn delete(path: &Path) {
        if Self::read(path).is_some() {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Removes the folder of this mpirun, and the parent folder if it is empty then. Returns the known job numbers.
    pub(super) fn remove_folder(&self) -> BTreeSet<u32> {
        let mut found: BTreeSet<u32> = self.job.into_iter().collect();
        if std::fs::symlink_metadata(&self.folder).is_ok_and(|metadata| self.owns_folder(&metadata)) {
            found.extend(job_numbers(&self.folder));
            let _ = std::fs::remove_dir_all(&self.folder);
            let _ = self.folder.parent().map(std::fs::remove_dir);
        }
        found
    }

    /// Returns true if the folder with this metadata was created by this mpirun.
    fn owns_folder(&self, metadata: &Metadata) -> bool {
        let started = UNIX_EPOCH + Duration::from_secs(self.started);
        // On file systems without creation times, only the identity counts.
        let timely = || metadata.created().is_ok_and(|time| (started..started + CREATION_LIMIT).contains(&time));
        let same = |identity| identity == (metadata.dev(), metadata.ino());
        metadata.is_dir() && metadata.uid() == user() && self.identity.map_or_else(timely, same)
    }
}
