//! What an mpirun that is killed, that kills its ranks, or whose launcher is killed leaves on this machine: a folder in
//! the temporary folder, and the shared memory of its ranks.

use std::{collections::BTreeSet, path::Path};

use crate::processes;

/// Where Open MPI keeps the memory that the ranks of a machine share, as `vader_segment.<host>.<user>.<job>.<rank>`.
const SHARED_MEMORY: &str = "/dev/shm";

/// The traces of one mpirun.
#[derive(Clone, Debug)]
pub struct Session {
    mpirun: u32,
    /// Open MPI's number of the job, once a rank on this machine has been found.
    job: Option<u32>,
}

impl Session {
    /// That of the mpirun with this process number.
    pub fn new(mpirun: u32) -> Self {
        Self { mpirun, job: None }
    }

    /// Hears of a process that may be a rank on this machine: its environment names the job.
    pub fn note(&mut self, rank: u32) {
        if self.job.is_none() {
            self.job = std::fs::read(format!("/proc/{rank}/environ")).ok().and_then(|environment| job(&environment));
        }
    }

    /// Removes them; nothing may run any more. mpirun that ends by itself has done so already.
    pub fn remove(&self) {
        let user = rustix::process::getuid().as_raw();
        let mut jobs = self.remove_folder(&std::env::temp_dir(), &session_folder(user));
        jobs.extend(self.job);
        remove_memory(Path::new(SHARED_MEMORY), user, &jobs);
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
        if name.starts_with("vader_segment.") && parts.iter().any(|part| name.contains(part)) {
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
    format!("ompi.{}.{user}", rustix::system::uname().nodename().to_string_lossy())
}

/// Removes what this user's mpiruns on this machine that live no more have left. One whose launcher is killed does not
/// always come to it.
pub fn remove_leftovers() {
    let lives = |pid: &str| pid.parse().is_ok_and(processes::lives);
    let user = rustix::process::getuid().as_raw();
    let jobs = remove_dead(&std::env::temp_dir().join(session_folder(user)), lives);
    remove_memory(Path::new(SHARED_MEMORY), user, &jobs);
}

/// Returns the numbers of the jobs of the dead.
fn remove_dead(folder: &Path, lives: impl Fn(&str) -> bool) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for (path, name) in entries(folder) {
        if name.strip_prefix("pid.").is_some_and(|pid| !lives(pid)) {
            found.extend(jobs(&path));
            let _ = std::fs::remove_dir_all(path);
        }
    }
    // Where it was the last one.
    let _ = std::fs::remove_dir(folder);
    found
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
        let session = Session { mpirun: 5, job: job(b"A=1\0PMIX_NAMESPACE=975306753\0B=2") };
        remove_memory(folder.path(), 0, &session.job.into_iter().collect());
        session.remove_folder(folder.path(), "ompi.a.0");
        let mut left: Vec<String> = entries(folder.path()).into_iter().map(|(_, name)| name).collect();
        left.sort();
        assert_eq!(left, ["ompi.a.0", others[1], names[2], others[0]]);
        assert!(folder.path().join("ompi.a.0/pid.55").exists() && !folder.path().join("ompi.a.0/pid.5").exists());
        assert_eq!(job(b"PMIX_NAMESPACE=prterun-a-5@1\0"), None);
    }

    #[test]
    fn what_the_dead_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let ours = folder.path().join("ompi.a.0");
        for name in ["pid.5/0", "pid.55", "jf.7"] {
            std::fs::create_dir_all(ours.join(name)).unwrap();
        }
        std::fs::create_dir(ours.join("pid.5/pmix_dstor_ds21_5")).unwrap();
        for name in ["smdataseg-975306753-0", "smlockseg-975306753", "initial-pmix_shared-segment-0"] {
            std::fs::write(ours.join("pid.5/pmix_dstor_ds21_5").join(name), "").unwrap();
        }
        assert_eq!(remove_dead(&ours, |pid| pid == "55"), [975306753].into());
        assert!(!ours.join("pid.5").exists() && ours.join("pid.55").exists() && ours.join("jf.7").exists());
        std::fs::remove_dir(ours.join("jf.7")).unwrap();
        remove_dead(&ours, |_| false);
        assert!(!ours.exists());
        remove_dead(&ours, |_| false);
    }
}
