//! The files in a cache folder and their locks.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::ownership::MARKER;
use crate::format::names::{is_dataset_id, is_shard_name};
use arinar_store::file_lock::try_lock;
use arinar_store::plain_file::nofollow;

/// Suffix of a file that is being downloaded.
pub(super) const PART: &str = ".part";
/// Suffix of a damaged copy.
pub(super) const DAMAGED: &str = ".damaged";

/// A file in the cache folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CachedFile {
    pub(super) path: PathBuf,
    /// Name of its folder, which is the id of the dataset.
    pub(super) dataset_id: String,
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) modified: SystemTime,
}

/// Lists the copies of all datasets: regular files with the name of a shard, in regular folders with the name of a
/// dataset. Other files are not listed, and therefore neither counted nor deleted. Links are not followed, and files
/// that disappear during the listing are skipped.
pub(super) fn files(folder: &Path) -> io::Result<Vec<CachedFile>> {
    let mut found = Vec::new();
    for dataset in present(std::fs::read_dir(folder))? {
        let dataset_id = dataset.file_name().to_string_lossy().into_owned();
        if !is_dataset_id(&dataset_id) || !dataset.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        for file in present(std::fs::read_dir(dataset.path()))? {
            let name = file.file_name().to_string_lossy().into_owned();
            let Some(facts) = file.metadata().ok().filter(|facts| facts.is_file() && is_copy(&name)) else { continue };
            let modified = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let (path, dataset_id) = (file.path(), dataset_id.clone());
            found.push(CachedFile { path, dataset_id, name, bytes: facts.len(), modified });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Whether `name` is the name of a complete, partial or damaged copy of a shard.
fn is_copy(name: &str) -> bool {
    let shard = [PART, DAMAGED].into_iter().find_map(|ending| name.strip_suffix(ending));
    is_shard_name(shard.unwrap_or(name))
}

fn present(entries: io::Result<std::fs::ReadDir>) -> io::Result<Vec<std::fs::DirEntry>> {
    match entries {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.collect(),
    }
}

/// Waits for the lock under which space in a cache is freed and reserved. It is held until the file is closed.
pub(super) fn lock_folder(folder: &Path) -> io::Result<File> {
    let file = nofollow(File::options().write(true)).open(folder.join(MARKER))?;
    file.lock()?;
    Ok(file)
}

/// Deletes a file unless a process has it open. Returns whether the file no longer exists.
pub(super) fn delete_unused(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        file => file?,
    };
    if !try_lock(&file)? {
        return Ok(false);
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(true),
    }
}

/// Whether the open file is still the file at `path`, that is, has been neither renamed nor deleted.
pub(super) fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Appends a suffix to the name of a path.
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
    fn only_shards_in_folders_of_datasets_are_copies() {
        const ID: &str = "00112233aabbccdd";
        let root = tempfile::tempdir().unwrap();
        let copies = ["shard-00000.safetensors", "shard-00001.safetensors.part", "shard-123456.safetensors.damaged"];
        let others = [
            "beside",
            "docs/shard-00000.safetensors",
            "00112233AABBCCDD/shard-00000.safetensors",
            "00112233aabbccd/shard-00000.safetensors",
            "00112233aabbccdd/thesis.pdf",
            "00112233aabbccdd/thesis.part",
            "00112233aabbccdd/shard-1.safetensors",
            "00112233aabbccdd/shard-00000.safetensors.bak",
            "00112233aabbccdd/shard-0000x.safetensors",
            "00112233aabbccdd/shard-00009.safetensors/notes",
        ];
        for file in copies.map(|name| format!("{ID}/{name}")).into_iter().chain(others.map(str::to_owned)) {
            let path = root.path().join(&file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &file).unwrap();
        }
        let link =
            |target: &str, name: &str| std::os::unix::fs::symlink(root.path().join(target), root.path().join(name));
        link("beside", "00112233aabbccdd/shard-00002.safetensors").unwrap();
        link("docs", "ffffffffffffffff").unwrap();
        let found = files(root.path()).unwrap();
        assert!(
            found.iter().all(|file| file.dataset_id == ID && file.bytes == (ID.len() + 1 + file.name.len()) as u64)
        );
        assert_eq!(found.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), copies);
        assert!(files(&root.path().join("nowhere")).unwrap().is_empty());
    }
}
