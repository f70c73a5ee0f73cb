//! Local folders that a run writes to: can it, and is there room? None is made to find out.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use arinar_store::Store;
use indicatif::DecimalBytes;

use super::finding::Finding;

/// A folder, and what for.
#[derive(Clone, Debug)]
pub struct Place {
    /// The key of the configuration that says where it is.
    pub key: &'static str,
    /// The folder; it need not exist.
    pub path: PathBuf,
    /// Bytes that the run will have there, those that lie there already among them.
    pub needed: u64,
    /// What they are.
    pub purpose: &'static str,
}

impl Place {
    /// Looks at the folder, or where it is not there at the nearest that is.
    pub fn look(&self) -> Finding {
        let fail = |problem: String| {
            let (path, key) = (self.path.display(), self.key);
            Finding::problem(key, format!("{path}: {problem}; set {key} to a folder on a disk that can be written to"))
        };
        let folder = match nearest_folder(&self.path) {
            Ok(folder) => folder,
            Err(problem) => return fail(problem),
        };
        if let Err(error) = try_writing(&folder) {
            return fail(format!("no file can be written in {} ({error})", folder.display()));
        }
        match rustix::fs::statvfs(&folder) {
            Err(error) => fail(format!("how much is free is not known ({error})")),
            Ok(disk) => self.judge(disk.f_bavail * disk.f_frsize, held(&self.path), folder == self.path),
        }
    }

    fn judge(&self, free: u64, held: u64, exists: bool) -> Finding {
        let (path, key, purpose) = (self.path.display(), self.key, self.purpose);
        let (free_text, needed) = (DecimalBytes(free), DecimalBytes(self.needed));
        if free.saturating_add(held) < self.needed {
            let held = DecimalBytes(held);
            return Finding::problem(
                key,
                format!(
                    "{path}: {needed} are needed for {purpose}, {free_text} are free and {held} there already; make \
                     room, or set {key} to a larger disk"
                ),
            );
        }
        let new = if exists { "" } else { " (will be made)" };
        let told = format!("{path}{new} can be written to, {free_text} are free");
        // How much that is may not be known.
        let told = if self.needed == 0 { told } else { format!("{told}, {needed} needed for {purpose}") };
        Finding::ok(key, told)
    }
}

/// The folder, or the nearest above it that is there.
pub fn nearest_folder(path: &Path) -> Result<PathBuf, String> {
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    for folder in path.ancestors() {
        match std::fs::metadata(folder) {
            Ok(facts) if facts.is_dir() => return Ok(folder.to_path_buf()),
            Ok(_) => return Err(format!("{} is a file", folder.display())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(format!("{}: {error}", folder.display())),
        }
    }
    Err("there is no such disk".to_owned())
}

/// Writes to a file that has no name, so that it is gone however this process ends.
pub fn try_writing(folder: &Path) -> io::Result<()> {
    tempfile::tempfile_in(folder)?.write_all(b"arinar-trainer --check")
}

/// Bytes of the files in a folder and below.
fn held(folder: &Path) -> u64 {
    let objects = Store::open(&folder.display().to_string()).and_then(|store| store.list(""));
    objects.map_or(0, |objects| objects.iter().map(|object| object.bytes).sum())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::planning::check::finding::Verdict;

    fn place(path: PathBuf, needed: u64) -> Place {
        Place { key: "data.cache_dir", path, needed, purpose: "the cache" }
    }

    #[test]
    fn a_folder_that_is_not_there_is_judged_by_the_nearest_and_not_made() {
        let root = tempfile::tempdir().unwrap();
        let finding = place(root.path().join("a/b"), 1000).look();
        assert_eq!(finding.verdict, Verdict::Ok, "{}", finding.said);
        assert!(finding.said.contains("(will be made)"));
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_way_and_a_folder_nobody_can_write_to() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let finding = place(root.path().join("file/cache"), 0).look();
        assert!(finding.verdict == Verdict::Problem && finding.said.contains("is a file"), "{}", finding.said);
        let finding = place(PathBuf::from("/proc/nowhere"), 0).look();
        assert!(finding.verdict == Verdict::Problem && finding.said.contains("in /proc"), "{}", finding.said);
    }

    #[test]
    fn what_lies_there_already_needs_no_more_room() {
        let place = place(PathBuf::from("/cache"), 100);
        assert_eq!(place.judge(60, 40, true).verdict, Verdict::Ok);
        let finding = place.judge(60, 39, true);
        assert!(finding.verdict == Verdict::Problem && finding.said.contains("100 B are needed"), "{}", finding.said);
        let finding = Place { needed: 0, ..place }.judge(0, 0, true);
        assert!(finding.verdict == Verdict::Ok && finding.said.ends_with("0 B are free"), "{}", finding.said);
    }
}
