//! The lock that prevents two launchers of the same run, which would restart each other's jobs.

use std::{
    fs::{File, TryLockError},
    os::unix::fs::MetadataExt,
    path::Path,
};

use crate::stop::Stop;

/// An exclusive lock on the log folder of a run. It is a lock of the kernel on the folder itself: it leaves no file behind
/// and is released when the process ends, however that happens.
#[derive(Debug)]
pub(crate) struct RunLock {
    _folder: File,
}

impl RunLock {
    /// Locks an existing folder. If its file system has no locks for folders, returns a warning as well.
    ///
    /// # Errors
    /// Another launcher holds the lock, or the folder cannot be opened.
    pub(crate) fn acquire(folder: &Path) -> Result<(Self, Option<String>), Stop> {
        let shown = folder.display();
        let file = File::open(folder).map_err(|error| Stop::configuration(format!("run.log_dir: {shown}: {error}")))?;
        match file.try_lock() {
            Ok(()) => Ok((Self { _folder: file }, None)),
            Err(TryLockError::WouldBlock) => {
                let holder = holder(&file).map_or_else(|| "on another host".to_owned(), |pid| format!("pid {pid}"));
                Err(Stop::configuration(format!(
                    "another arinar-launcher ({holder}) already manages this run, see {shown}; stop it, or set another \
                     run.log_dir and run.dir"
                )))
            }
            // Some network file systems cannot lock folders. The trainer's lease of run.dir still protects the run.
            Err(TryLockError::Error(error)) => {
                let warning = format!(
                    "{shown} cannot be locked ({error}), so a second launcher of this run is noticed only by the lease of \
                     run.dir; start one launcher, or set run.log_dir to a folder on a local disk"
                );
                Ok((Self { _folder: file }, Some(warning)))
            }
        }
    }
}

/// Returns the process that holds the lock according to the kernel, which lists locks as
/// `1: FLOCK ADVISORY WRITE 812 fe:00:4711 0 EOF`.
fn holder(file: &File) -> Option<u32> {
    let inode = file.metadata().ok()?.ino().to_string();
    let list = std::fs::read_to_string("/proc/locks").ok()?;
    list.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let held = words.get(1) == Some(&"FLOCK") && words.get(5)?.rsplit(':').next() == Some(inode.as_str());
        let pid = words.get(4)?.parse().ok()?;
        (held && pid != 0).then_some(pid)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunLock::acquire(folder.path()).unwrap();
        let error = RunLock::acquire(folder.path()).unwrap_err();
        assert!(error.code == 78 && error.line.contains(&format!("(pid {})", std::process::id())), "{error}");
        drop(first);
        // A process that another test starts holds a copy of the lock between its fork and its exec.
        let began = std::time::Instant::now();
        while let Err(held) = RunLock::acquire(folder.path()) {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "{held}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
