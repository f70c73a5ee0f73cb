//! The check of a local folder that a run writes to: permission and free space. Creates no folder.

use std::path::{Path, PathBuf};

use arinar_store::Store;
use indicatif::DecimalBytes;

use super::finding::Finding;
use crate::folders;

/// A folder to check.
#[derive(Clone, Debug)]
pub(crate) struct FolderCheck {
    /// The configuration key that sets the folder.
    pub key: &'static str,
    /// The folder, which need not exist.
    pub path: PathBuf,
    /// Number of bytes that the run will have in it, including those that are already there; 0 if unknown.
    pub needed: u64,
    /// The purpose of the space.
    pub purpose: &'static str,
}

impl FolderCheck {
    /// Checks the folder or, if it does not exist, its nearest existing ancestor.
    pub(crate) fn run(&self) -> Finding {
        let folder = match folders::check(self.key, &self.path) {
            Ok(folder) => folder,
            Err(problem) => return Finding::problem(self.key, problem),
        };
        match rustix::fs::statvfs(&folder) {
            Err(error) => {
                let problem = format!("cannot determine the free space ({error})");
                Finding::problem(self.key, folders::with_fix(self.key, &self.path, &problem))
            }
            Ok(disk) => self.judge(disk.f_bavail * disk.f_frsize, bytes_in(&self.path), folder == self.path),
        }
    }

    /// Compares the needed space with the free space and the bytes that the folder already holds.
    fn judge(&self, free: u64, held: u64, exists: bool) -> Finding {
        let (path, key, purpose) = (self.path.display(), self.key, self.purpose);
        let (free_text, needed) = (DecimalBytes(free), DecimalBytes(self.needed));
        if free.saturating_add(held) < self.needed {
            let held = DecimalBytes(held);
            return Finding::problem(
                key,
                format!(
                    "{path}: {needed} needed for {purpose}, but the disk has {free_text} free and the folder holds \
                     {held}; make room, or set {key} to a folder on a larger disk"
                ),
            );
        }
        let created = if exists { "" } else { " (will be created)" };
        let needed = if self.needed == 0 { String::new() } else { format!(", {needed} needed for {purpose}") };
        Finding::ok(key, format!("{path}{created} is writable; {free_text} free{needed}"))
    }
}

/// Returns the size of all files in a folder and its subfolders; 0 if it does not exist.
fn bytes_in(folder: &Path) -> u64 {
    let objects = Store::open(&folder.display().to_string()).and_then(|store| store.list(""));
    objects.map_or(0, |objects| objects.iter().map(|object| object.bytes).sum())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::planning::check::finding::Verdict;

    fn cache(path: PathBuf, needed: u64) -> FolderCheck {
        FolderCheck { key: "data.cache_dir", path, needed, purpose: "the cache" }
    }

    #[test]
    fn a_missing_folder_is_judged_by_its_ancestor_and_not_created() {
        let root = tempfile::tempdir().unwrap();
        let finding = cache(root.path().join("a/b"), 1000).run();
        assert_eq!(finding.verdict, Verdict::Ok, "{}", finding.text);
        assert!(finding.text.contains("(will be created)"));
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_way_and_a_read_only_folder_are_problems() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let finding = cache(root.path().join("file/cache"), 0).run();
        assert!(finding.is_problem() && finding.text.contains("is a file"), "{}", finding.text);
        let finding = cache(PathBuf::from("/proc/nowhere"), 0).run();
        assert!(finding.is_problem() && finding.text.contains("cannot write to /proc"), "{}", finding.text);
    }

    #[test]
    fn bytes_already_in_the_folder_need_no_more_space() {
        let cache = cache(PathBuf::from("/cache"), 100);
        assert_eq!(cache.judge(60, 40, true).verdict, Verdict::Ok);
        let finding = cache.judge(60, 39, true);
        assert!(finding.is_problem() && finding.text.contains("100 B needed"), "{}", finding.text);
        let finding = FolderCheck { needed: 0, ..cache }.judge(0, 0, true);
        assert!(finding.verdict == Verdict::Ok && finding.text.ends_with("0 B free"), "{}", finding.text);
    }
}
