//! Files of Open MPI on this host.

use std::{
    collections::BTreeSet,
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Folder in which Open MPI keeps the memory that the ranks of a host share, as
/// `vader_segment.<host>.<user>.<job>.<rank>`.
pub(super) const SHARED_MEMORY: &str = "/dev/shm";

/// Removes the shared memory of these jobs of this user. `user` is the user ID in the names of the files.
pub(super) fn remove_shared_memory(folder: &Path, user: u32, jobs: &BTreeSet<u32>) {
    let parts: Vec<String> = jobs.iter().map(|job| format!(".{user}.{job:x}.")).collect();
    for (path, name) in entries(folder) {
        let matches = name.starts_with("vader_segment.") && parts.iter().any(|part| name.contains(part));
        let is_own_file = |metadata: Metadata| metadata.is_file() && metadata.uid() == self::user();
        if matches && std::fs::symlink_metadata(&path).is_ok_and(is_own_file) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Returns the job numbers of an mpirun, which occur in the names of the files in its folder:
/// `pmix_dstor_ds21_812/smdataseg-975306753-0`.
pub(super) fn job_numbers(folder: &Path) -> BTreeSet<u32> {
    let stores = entries(folder).into_iter().filter(|(_, name)| name.starts_with("pmix_dstor_"));
    let files = stores.flat_map(|(path, _)| entries(&path));
    files.filter_map(|(_, name)| name.split_once("seg-")?.1.split('-').next()?.parse().ok()).collect()
}

/// Returns the job number in the environment of a rank. Open MPI 4 sets it.
pub(super) fn job_number(environment: &[u8]) -> Option<u32> {
    let value = environment.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"PMIX_NAMESPACE="))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Returns the name of the folder with the sessions of a user. It contains the host, since hosts may share /tmp.
pub(super) fn sessions_folder(user: u32) -> String {
    format!("ompi.{}.{user}", host())
}

/// Returns the name of this host.
pub(super) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Returns an ID that changes with every boot of this host.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Returns the user ID of this process.
pub(super) fn user() -> u32 {
    rustix::process::getuid().as_raw()
}

/// Returns the paths and names of the files in a folder; none if it cannot be read.
pub(super) fn entries(folder: &Path) -> Vec<(PathBuf, String)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned())).collect()
}
