//! One launcher per run: two would restart each other's jobs.

use std::{fs::File, os::unix::fs::MetadataExt, path::Path};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::exit::Stop;

/// Held as long as the launcher lives. The lock is the kernel's, on the folder itself: it leaves no file behind, and
/// ends with the process however that ends.
#[derive(Debug)]
pub struct RunLock {
    _folder: File,
}

impl RunLock {
    /// Takes the folder, which must be there.
    ///
    /// # Errors
    /// Another launcher has it, or it cannot be opened.
    pub fn take(folder: &Path) -> Result<Self, Stop> {
        let shown = folder.display();
        let file = File::open(folder).map_err(|error| Stop::configuration(format!("run.log_dir: {shown}: {error}")))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let holder =
                    holder(&file).map_or_else(|| "on another machine".to_owned(), |pid| format!("of pid {pid}"));
                Err(Stop::configuration(format!(
                    "another arinar-launcher ({holder}) runs this already, see {shown}; end it, or give this run another \
                     run.log_dir and run.dir"
                )))
            }
            // Some network file systems lock no folders; the trainer's lease on run.dir is still there.
            _ => Ok(Self { _folder: file }),
        }
    }
}

/// Who holds it, as the kernel's list says: `1: FLOCK ADVISORY WRITE 812 fe:00:4711 0 EOF`.
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
    fn the_second_learns_who_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunLock::take(folder.path()).unwrap();
        let told = RunLock::take(folder.path()).unwrap_err();
        assert!(told.code == 78 && told.line.contains(&format!("of pid {}", std::process::id())), "{told}");
        drop(first);
        // A process that another test starts has a copy of the lock from its fork until it becomes another program.
        let began = std::time::Instant::now();
        while let Err(held) = RunLock::take(folder.path()) {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "{held}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
