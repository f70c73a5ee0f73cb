//! What lies in a cache folder, and whether it is in use.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Ending of a file that is being downloaded.
pub(super) const PART: &str = ".part";
/// Ending of a copy that was damaged.
pub(super) const DAMAGED: &str = ".damaged";
/// Locked while space is made and reserved.
const LOCK: &str = ".lock";

/// A file in the cache folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CachedFile {
    pub(super) path: PathBuf,
    /// Folder it lies in: the dataset's id.
    pub(super) dataset_id: String,
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) modified: SystemTime,
}

/// All files of all datasets. One that vanishes meanwhile is left out, and so is what is no file: a copy is one, whatever
/// else somebody keeps in the folder.
pub(super) fn files(folder: &Path) -> io::Result<Vec<CachedFile>> {
    let mut found = Vec::new();
    for dataset in present(std::fs::read_dir(folder))? {
        if !dataset.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let dataset_id = dataset.file_name().to_string_lossy().into_owned();
        for file in present(std::fs::read_dir(dataset.path()))? {
            let Some(facts) = file.metadata().ok().filter(std::fs::Metadata::is_file) else { continue };
            let name = file.file_name().to_string_lossy().into_owned();
            let modified = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let (path, dataset_id) = (file.path(), dataset_id.clone());
            found.push(CachedFile { path, dataset_id, name, bytes: facts.len(), modified });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn present(entries: io::Result<std::fs::ReadDir>) -> io::Result<Vec<std::fs::DirEntry>> {
    match entries {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.collect(),
    }
}

/// Waits for the right to make and reserve space in the folder; it lasts as long as the file is open.
pub(super) fn lock_folder(folder: &Path) -> io::Result<File> {
    std::fs::create_dir_all(folder)?;
    let file = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK))?;
    file.lock()?;
    Ok(file)
}

/// Deletes a file unless some process has it open; says whether it is gone.
pub(super) fn delete_unused(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        file => file?,
    };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
        Ok(()) => {}
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(true),
    }
}

/// Whether the open file is the one at `path`, and not one that was renamed or deleted since.
pub(super) fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// The path with an ending appended to its name.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_copies() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["dataset", "spool/step-00000007", "empty"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for file in ["beside", "dataset/b.part", "dataset/a", "spool/step-00000007/model"] {
            std::fs::write(root.path().join(file), file).unwrap();
        }
        std::os::unix::fs::symlink(root.path().join("beside"), root.path().join("dataset/link")).unwrap();
        std::os::unix::fs::symlink(root.path().join("dataset"), root.path().join("another")).unwrap();
        let found = files(root.path()).unwrap();
        let names: Vec<(&str, &str, u64)> =
            found.iter().map(|file| (file.dataset_id.as_str(), file.name.as_str(), file.bytes)).collect();
        assert_eq!(names, [("dataset", "a", 9), ("dataset", "b.part", 14)]);
        assert!(files(&root.path().join("nowhere")).unwrap().is_empty());
    }
}
