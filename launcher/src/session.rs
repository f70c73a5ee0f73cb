//! What an mpirun that is killed, that kills its ranks, or whose launcher is killed leaves on this machine: a folder in
//! the temporary folder, and the shared memory of its ranks.
//!
//! Other MPI jobs of the same user have theirs in the same places. So the launcher notes in a file which mpirun it has
//! started, and after it was killed the next launcher of the run removes what that one has left and nothing else.

use std::{
    collections::BTreeSet,
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::processes;

/// Name of the file that remembers the mpirun of a run, among the logs of its ranks.
pub const RECORD: &str = "session.json";

/// mpirun makes its folder within this time. One that is made later is of another process that has its number.
const FOLDER_IS_MADE: Duration = Duration::from_secs(60);

/// Where Open MPI keeps the memory that the ranks of a machine share, as `vader_segment.<host>.<user>.<job>.<rank>`.
const SHARED_MEMORY: &str = "/dev/shm";

/// The traces of one mpirun.
#[derive(Clone, Debug)]
pub struct Session {
    mpirun: u32,
    /// Open MPI's number of the job, once a rank on this machine has been found.
    job: Option<u32>,
    started: SystemTime,
    /// Where it is remembered.
    record: PathBuf,
}

/// A session as it is remembered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// The machine, and which running of its kernel.
    host: String,
    boot_id: String,
    mpirun: u32,
    job: Option<u32>,
    /// When mpirun was started, in seconds since 1970.
    started: u64,
    /// Its folder.
    folder: PathBuf,
    /// Which folder that is, once it has been seen: device and inode.
    identity: Option<(u64, u64)>,
}

impl Session {
    /// That of the mpirun with this process number, which has just been started. The file `record` remembers it.
    pub fn new(mpirun: u32, record: PathBuf) -> Self {
        let session = Self { mpirun, job: None, started: SystemTime::now(), record };
        session.remember(&std::env::temp_dir());
        session
    }

    /// Hears of a process that may be a rank on this machine: its environment names the job. mpirun has made its folder
    /// by then.
    pub fn note(&mut self, rank: u32) {
        if self.job.is_none() {
            self.job = std::fs::read(format!("/proc/{rank}/environ")).ok().and_then(|environment| job(&environment));
            self.remember(&std::env::temp_dir());
        }
    }

    /// Best effort: what is not remembered is not removed after the launcher is killed.
    fn remember(&self, temporary: &Path) {
        let folder = temporary.join(session_folder(user())).join(format!("pid.{}", self.mpirun));
        let identity = std::fs::symlink_metadata(&folder).ok().map(|facts| (facts.dev(), facts.ino()));
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (host, boot_id, mpirun, job) = (host(), boot_id(), self.mpirun, self.job);
        let record = Record { host, boot_id, mpirun, job, started, folder, identity };
        if Record::may_be_at(&self.record) {
            let _ = std::fs::write(&self.record, serde_json::to_vec(&record).unwrap_or_default());
        }
    }

    /// Removes them; nothing may run any more. mpirun that ends by itself has done so already.
    pub fn remove(&self) {
        let mut jobs = self.remove_folder(&std::env::temp_dir(), &session_folder(user()));
        jobs.extend(self.job);
        remove_memory(Path::new(SHARED_MEMORY), user(), &jobs);
        Record::forget(&self.record);
    }

    /// Returns the numbers of mpirun's jobs.
    fn remove_folder(&self, temporary: &Path, name: &str) -> BTreeSet<u32> {
        let folder = temporary.join(name);
        let ours = folder.join(format!("pid.{}", self.mpirun));
        let found = jobs(&ours);
        let _ = std::fs::remove_dir_all(ours);
        // Where it was the last one.
        let _ = std::fs::remove_dir(folder);
        found
    }
}

fn remove_memory(folder: &Path, user: u32, jobs: &BTreeSet<u32>) {
    let parts: Vec<String> = jobs.iter().map(|job| format!(".{user}.{job:x}.")).collect();
    for (path, name) in entries(folder) {
        let ours = name.starts_with("vader_segment.") && parts.iter().any(|part| name.contains(part));
        let is_file = |facts: Metadata| facts.is_file() && facts.uid() == self::user();
        if ours && std::fs::symlink_metadata(&path).is_ok_and(is_file) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Numbers of an mpirun's jobs, as files in its folder are named: `pmix_dstor_ds21_812/smdataseg-975306753-0`.
fn jobs(folder: &Path) -> BTreeSet<u32> {
    let stores = entries(folder).into_iter().filter(|(_, name)| name.starts_with("pmix_dstor_"));
    let files = stores.flat_map(|(path, _)| entries(&path));
    files.filter_map(|(_, name)| name.split_once("seg-")?.1.split('-').next()?.parse().ok()).collect()
}

/// What the folder of a user's mpiruns on this machine is called: /tmp may be that of several machines.
fn session_folder(user: u32) -> String {
    format!("ompi.{}.{user}", host())
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn user() -> u32 {
    rustix::process::getuid().as_raw()
}

/// Removes what the mpirun has left that is remembered in the file `record`, if it was one of this machine and lives no
/// more. One whose launcher is killed does not always come to it itself.
pub fn remove_leftovers(record: &Path) {
    let Some(left) = Record::read(record).filter(|left| left.host == host()) else { return };
    let lives = i32::try_from(left.mpirun).is_ok_and(processes::lives);
    if lives && left.boot_id == boot_id() {
        return;
    }
    let jobs = left.remove_folder();
    remove_memory(Path::new(SHARED_MEMORY), user(), &jobs);
    Record::forget(record);
}

impl Record {
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// There is none, or one to be replaced: not a file of somebody else.
    fn may_be_at(path: &Path) -> bool {
        std::fs::symlink_metadata(path).is_err() || Self::read(path).is_some()
    }

    fn forget(path: &Path) {
        if Self::read(path).is_some() {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Whether a folder of that name is the one that this mpirun has made.
    fn is_its_folder(&self, facts: &Metadata) -> bool {
        let started = UNIX_EPOCH + Duration::from_secs(self.started);
        // File systems that do not know it say nothing about when a folder was made.
        let made = || facts.created().is_ok_and(|made| (started..started + FOLDER_IS_MADE).contains(&made));
        let same = |identity| identity == (facts.dev(), facts.ino());
        facts.is_dir() && facts.uid() == user() && self.identity.map_or_else(made, same)
    }

    /// Returns the numbers of mpirun's jobs.
    fn remove_folder(&self) -> BTreeSet<u32> {
        let mut found: BTreeSet<u32> = self.job.into_iter().collect();
        if std::fs::symlink_metadata(&self.folder).is_ok_and(|facts| self.is_its_folder(&facts)) {
            found.extend(jobs(&self.folder));
            let _ = std::fs::remove_dir_all(&self.folder);
            // Where it was the last one.
            let _ = self.folder.parent().map(std::fs::remove_dir);
        }
        found
    }
}

fn entries(folder: &Path) -> Vec<(std::path::PathBuf, String)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned())).collect()
}

/// Open MPI 4 gives each rank the number of its job.
fn job(environment: &[u8]) -> Option<u32> {
    let value = environment.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"PMIX_NAMESPACE="))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_others_stays() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["vader_segment.a.0.3a220001.0", "vader_segment.a.0.3a220001.1", "vader_segment.a.0.3a220002.0"];
        let others = ["vader_segment.a.7.3a220001.0", "other.a.0.3a220001.0"];
        for name in names.iter().chain(&others) {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir_all(folder.path().join("ompi.a.0/pid.5/0")).unwrap();
        std::fs::create_dir_all(folder.path().join("ompi.a.0/pid.55")).unwrap();
        let record = tempfile::tempdir().unwrap();
        let mut session = Session::new(5, record.path().join(RECORD));
        session.job = job(b"A=1\0PMIX_NAMESPACE=975306753\0B=2");
        remove_memory(folder.path(), 0, &session.job.into_iter().collect());
        session.remove_folder(folder.path(), "ompi.a.0");
        let mut left: Vec<String> = entries(folder.path()).into_iter().map(|(_, name)| name).collect();
        left.sort();
        assert_eq!(left, ["ompi.a.0", others[1], names[2], others[0]]);
        assert!(folder.path().join("ompi.a.0/pid.55").exists() && !folder.path().join("ompi.a.0/pid.5").exists());
        assert_eq!(job(b"PMIX_NAMESPACE=prterun-a-5@1\0"), None);
    }

    /// A folder as mpirun number 5 makes it, and the session that remembers it.
    fn remembered(temporary: &Path) -> (PathBuf, Session) {
        let folder = temporary.join(session_folder(user())).join("pid.5");
        std::fs::create_dir_all(folder.join("0")).unwrap();
        std::fs::create_dir(folder.join("pmix_dstor_ds21_5")).unwrap();
        for name in ["smdataseg-975306753-0", "smlockseg-975306753", "initial-pmix_shared-segment-0"] {
            std::fs::write(folder.join("pmix_dstor_ds21_5").join(name), "").unwrap();
        }
        let session = Session::new(5, temporary.join(RECORD));
        session.remember(temporary);
        (folder, session)
    }

    #[test]
    fn what_the_remembered_mpirun_left_is_removed_and_no_other() {
        let temporary = tempfile::tempdir().unwrap();
        let (folder, session) = remembered(temporary.path());
        let of_another = folder.with_file_name("pid.6");
        std::fs::create_dir(&of_another).unwrap();
        let left = Record::read(&session.record).unwrap();
        assert_eq!(left.remove_folder(), [975306753].into());
        assert!(!folder.exists() && of_another.exists());
        // Another mpirun that has its process number, and a link in its place.
        std::fs::create_dir(&folder).unwrap();
        let another = || Record::read(&session.record).unwrap();
        let (device, inode) = left.identity.unwrap();
        for other in [
            Record { identity: Some((device, inode + 1_000_000)), ..another() },
            Record { identity: None, started: left.started + 3600, ..another() },
            Record { identity: None, started: left.started - 3600, ..another() },
        ] {
            assert!(other.remove_folder().is_empty() && folder.exists());
        }
        // The launcher may be killed before it has seen the folder.
        Record { identity: None, ..another() }.remove_folder();
        assert!(!folder.exists());
        std::os::unix::fs::symlink(&of_another, &folder).unwrap();
        assert!(left.remove_folder().is_empty() && of_another.exists());
    }

    #[test]
    fn leftovers_of_other_machines_and_files_of_others_stay() {
        let temporary = tempfile::tempdir().unwrap();
        let (folder, session) = remembered(temporary.path());
        let elsewhere = Record { host: "elsewhere".to_owned(), ..Record::read(&session.record).unwrap() };
        std::fs::write(&session.record, serde_json::to_vec(&elsewhere).unwrap()).unwrap();
        remove_leftovers(&session.record);
        assert!(folder.exists() && session.record.exists());
        // Number 1 always lives.
        let alive = Record { host: host(), mpirun: 1, ..elsewhere };
        std::fs::write(&session.record, serde_json::to_vec(&alive).unwrap()).unwrap();
        remove_leftovers(&session.record);
        assert!(folder.exists() && session.record.exists());
        let dead = Record { mpirun: u32::MAX, job: None, ..alive };
        std::fs::write(&session.record, serde_json::to_vec(&dead).unwrap()).unwrap();
        remove_leftovers(&session.record);
        assert!(!folder.exists() && !session.record.exists());
        // A file that happens to have the name of the record.
        std::fs::write(&session.record, "{}").unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        session.remember(temporary.path());
        remove_leftovers(&session.record);
        Record::forget(&session.record);
        assert_eq!(std::fs::read_to_string(&session.record).unwrap(), "{}");
    }
}
