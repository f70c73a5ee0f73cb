//! The files of one mpirun.

use std::{
    collections::BTreeSet,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    artifacts::{SHARED_MEMORY, boot_id, host, job_number, job_numbers, remove_shared_memory, sessions_folder, user},
    record::SessionRecord,
};
use crate::processes;

/// The files of an mpirun that this launcher started.
#[derive(Clone, Debug)]
pub(crate) struct MpiSession {
    /// Process ID of mpirun.
    mpirun: u32,
    /// Open MPI's number of the job, once a rank on this host has been found.
    pub(super) job: Option<u32>,
    started: SystemTime,
    /// Path of the file with the [`SessionRecord`].
    pub(super) record: PathBuf,
}

impl MpiSession {
    /// Registers an mpirun that has just been started, and writes the file `record`.
    pub(crate) fn new(mpirun: u32, record: PathBuf) -> Self {
        let session = Self { mpirun, job: None, started: SystemTime::now(), record };
        session.save(&std::env::temp_dir());
        session
    }

    /// Reads the job number from the environment of a process on this host that may be a rank. By the time a rank runs,
    /// mpirun has created its folder.
    pub(crate) fn add_rank(&mut self, pid: u32) {
        if self.job.is_none() {
            self.job = std::fs::read(format!("/proc/{pid}/environ")).ok().and_then(|bytes| job_number(&bytes));
            self.save(&std::env::temp_dir());
        }
    }

    /// Writes the record, so that the files can be removed after this launcher is killed.
    pub(super) fn save(&self, temporary: &Path) {
        let folder = temporary.join(sessions_folder(user())).join(format!("pid.{}", self.mpirun));
        let identity = std::fs::symlink_metadata(&folder).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (host, boot_id, mpirun, job) = (host(), boot_id(), self.mpirun, self.job);
        SessionRecord { host, boot_id, mpirun, job, started, folder, identity }.write(&self.record);
    }

    /// Removes the files and the record after all processes of the job have ended. An mpirun that exits normally has
    /// removed its files already.
    pub(crate) fn remove(&self) {
        let mut jobs = self.remove_folder(&std::env::temp_dir(), &sessions_folder(user()));
        jobs.extend(self.job);
        remove_shared_memory(Path::new(SHARED_MEMORY), user(), &jobs);
        SessionRecord::delete(&self.record);
    }

    /// Removes the folder of this mpirun, and its parent `name` if it is empty then. Returns the job numbers found.
    pub(super) fn remove_folder(&self, temporary: &Path, name: &str) -> BTreeSet<u32> {
        let parent = temporary.join(name);
        let folder = parent.join(format!("pid.{}", self.mpirun));
        let found = job_numbers(&folder);
        let _ = std::fs::remove_dir_all(folder);
        let _ = std::fs::remove_dir(parent);
        found
    }
}

/// Removes the files of the mpirun in the file `record`, if it ran on this host and has ended. An mpirun whose launcher is
/// killed does not always remove them itself.
pub(crate) fn remove_leftovers(record: &Path) {
    let Some(session) = SessionRecord::read(record).filter(|session| session.host == host()) else { return };
    let is_alive = i32::try_from(session.mpirun).is_ok_and(processes::is_alive);
    if is_alive && session.boot_id == boot_id() {
        return;
    }
    let jobs = session.remove_folder();
    remove_shared_memory(Path::new(SHARED_MEMORY), user(), &jobs);
    SessionRecord::delete(record);
}
