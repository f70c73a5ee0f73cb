//! Recognition of shard caches: folders with a marker file at their root.
//!
//! A cache deletes files to make room, so it must not use a folder with other contents. A new or empty folder becomes a
//! cache when the marker is written, before any other file. A folder that has no marker and is not empty is rejected.
//! Within a cache, only files with the name of a shard in a folder with the name of a dataset are used (see
//! [`super::folder::files`]).

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use arinar_store::file_lock;

/// Name of the marker file, which is also locked while space is reserved.
pub(super) const MARKER: &str = "arinar-cache.json";
/// Prefix of the names of markers that are being written.
const MARKER_STEM: &str = "arinar-cache.";
/// Version of the cache layout that this program uses.
const FORMAT_VERSION: u32 = 1;
const PRODUCT: &str = "arinar shard cache";
/// Folder for recovered files that mkfs creates at the root of a new disk.
const LOST_AND_FOUND: &str = "lost+found";

/// Contents of the marker file.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    product: String,
    format_version: u32,
    /// Explanation for people who find the folder.
    about: String,
}

/// Turns a new or empty folder into a cache. Does nothing if the folder is a cache already; if several processes call
/// it at once, one of them writes the marker.
///
/// # Errors
/// Returns [`DataError::NotACache`] if the folder has other contents, [`DataError::NoLocks`] if the file system has no
/// locks, and [`DataError::File`] if the folder cannot be used.
pub(crate) fn claim(folder: &Path) -> Result<(), DataError> {
    let failed = |source| DataError::File { path: folder.to_path_buf(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    if !is_cache(folder)? {
        write_marker(folder).map_err(failed)?;
    }
    let locked = File::open(folder.join(MARKER)).and_then(|marker| file_lock::try_lock_shared(&marker));
    check_locks(folder, locked.map(drop))
}

/// Checks that the contents of a folder and its file system allow it to be used as a cache. Nothing is left behind.
///
/// # Errors
/// Returns [`DataError::NotACache`] if the folder has other contents, [`DataError::NoLocks`] if the file system has no
/// locks, and [`DataError::File`] if the folder cannot be read.
pub fn probe(folder: &Path) -> Result<(), DataError> {
    is_cache(folder)?;
    match folder.ancestors().find(|folder| folder.is_dir()) {
        Some(nearest) => check_locks(folder, file_lock::probe(nearest)),
        None => Ok(()),
    }
}

/// Examines the result of locking a file in the cache. Other errors than missing locks are reported later.
fn check_locks(folder: &Path, locked: io::Result<()>) -> Result<(), DataError> {
    match locked {
        Err(source) if file_lock::is_unsupported(&source) => {
            Err(DataError::NoLocks { folder: folder.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}

/// Checks that a dataset's folder in a cache is not a link, which could lead to files outside the cache.
///
/// # Errors
/// Returns [`DataError::NotACache`] if it is a link or a file.
pub(super) fn check_dataset_folder(folder: &Path, dataset_id: &str) -> Result<(), DataError> {
    match std::fs::symlink_metadata(folder.join(dataset_id)) {
        Ok(facts) if !facts.is_dir() => {
            let reason = format!("its {dataset_id} is a link or a file instead of the folder of a dataset");
            Err(DataError::NotACache { folder: folder.to_path_buf(), reason })
        }
        _ => Ok(()),
    }
}

/// Returns true for a cache and false for a folder that can become one.
fn is_cache(folder: &Path) -> Result<bool, DataError> {
    if has_marker(folder)? {
        return Ok(true);
    }
    let others = contents(folder).map_err(|source| DataError::File { path: folder.to_path_buf(), source })?;
    // Another process may have turned it into a cache in the meantime.
    if others.is_empty() || has_marker(folder)? {
        return Ok(!others.is_empty());
    }
    let hint = if looks_like_an_unmarked_cache(folder, &others) {
        "; if an earlier version of this program made it, delete it, because it holds copies only"
    } else {
        ""
    };
    let reason = format!("it is not empty and has no {MARKER}{hint}");
    Err(DataError::NotACache { folder: folder.to_path_buf(), reason })
}

fn has_marker(folder: &Path) -> Result<bool, DataError> {
    let path = folder.join(MARKER);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(source) => return Err(DataError::File { path, source }),
    };
    let refuse = |reason: String| Err(DataError::NotACache { folder: folder.to_path_buf(), reason });
    match serde_json::from_slice::<Marker>(&text) {
        Ok(marker) if marker.product != PRODUCT => refuse(format!("its {MARKER} was not written by this program")),
        Ok(marker) if marker.format_version != FORMAT_VERSION => {
            let found = marker.format_version;
            refuse(format!("it has format version {found}, this program uses {FORMAT_VERSION}"))
        }
        Ok(_) => Ok(true),
        Err(error) => refuse(format!("its {MARKER} cannot be read ({error})")),
    }
}

/// Lists the names in the folder, except those that a new cache may contain.
fn contents(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names: io::Result<Vec<String>> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    Ok(names?.into_iter().filter(|name| name != LOST_AND_FOUND && !name.starts_with(MARKER_STEM)).collect())
}

/// Whether the folder is a cache of an early version, which had a file `.lock` instead of a marker.
fn looks_like_an_unmarked_cache(folder: &Path, names: &[String]) -> bool {
    let dataset = |name: &str| crate::format::names::is_dataset_id(name) && folder.join(name).is_dir();
    names.iter().any(|name| name == ".lock") && names.iter().all(|name| name == ".lock" || dataset(name))
}

/// Writes the marker atomically, without replacing the marker of another process.
fn write_marker(folder: &Path) -> io::Result<()> {
    let marker = Marker {
        product: PRODUCT.to_owned(),
        format_version: FORMAT_VERSION,
        about: "Copies of dataset shards. They are deleted and fetched again as needed; keep nothing else here."
            .to_owned(),
    };
    // Readable by all users who share the cache, as the umask allows.
    let mut file = tempfile::Builder::new()
        .prefix(MARKER_STEM)
        .suffix(".tmp")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    file.write_all(&serde_json::to_vec_pretty(&marker)?)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(folder.join(MARKER)) {
        Err(failed) if failed.error.kind() != io::ErrorKind::AlreadyExists => Err(failed.error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refusal(folder: &Path) -> String {
        let names = || contents(folder).unwrap().into_iter().collect::<std::collections::BTreeSet<_>>();
        let before = names();
        let probed = probe(folder).unwrap_err();
        let error = claim(folder).unwrap_err();
        assert!(matches!(error, DataError::NotACache { .. }) && error.is_configuration(), "{error:?}");
        assert_eq!(probed.to_string(), error.to_string());
        assert_eq!(names(), before, "a rejected folder was changed");
        error.to_string()
    }

    #[test]
    fn a_new_or_empty_folder_becomes_a_cache_once() {
        let root = tempfile::tempdir().unwrap();
        for folder in [root.path().join("new/cache"), root.path().join("empty"), root.path().join("disk")] {
            let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
            if name != "cache" {
                std::fs::create_dir(&folder).unwrap();
            }
            if name == "disk" {
                std::fs::create_dir(folder.join(LOST_AND_FOUND)).unwrap();
            }
            probe(&folder).unwrap();
            assert!(!folder.join(MARKER).exists());
            claim(&folder).unwrap();
            let first = std::fs::read(folder.join(MARKER)).unwrap();
            std::fs::write(folder.join("beside"), "a file of somebody else").unwrap();
            claim(&folder).unwrap();
            probe(&folder).unwrap();
            assert_eq!(std::fs::read(folder.join(MARKER)).unwrap(), first);
        }
    }

    #[test]
    fn a_folder_with_other_contents_is_refused() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("thesis.pdf"), "years of work").unwrap();
        let message = refusal(root.path());
        assert!(
            message.contains("is not empty") && message.contains("data.cache_dir") && !message.contains("delete it"),
            "{message}"
        );
        std::fs::remove_file(root.path().join("thesis.pdf")).unwrap();
        std::fs::write(root.path().join(".lock"), "").unwrap();
        std::fs::create_dir(root.path().join("0123456789abcdef")).unwrap();
        let message = refusal(root.path());
        assert!(message.contains("earlier version"), "{message}");
    }

    #[test]
    fn a_marker_of_something_else_is_refused() {
        let root = tempfile::tempdir().unwrap();
        for (marker, part) in [
            ("", "cannot be read"),
            ("{}", "cannot be read"),
            (r#"{"product": "other", "format_version": 1, "about": ""}"#, "not written by this program"),
            (r#"{"product": "arinar shard cache", "format_version": 2, "about": ""}"#, "format version 2"),
        ] {
            std::fs::write(root.path().join(MARKER), marker).unwrap();
            let message = refusal(root.path());
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn processes_that_claim_a_folder_together_agree() {
        let root = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let folder = root.path().join(round.to_string());
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let folder = &folder;
                    scope.spawn(move || {
                        claim(folder).unwrap();
                        // The first one may fill the cache before the last one checks it.
                        std::fs::create_dir_all(folder.join(format!("0123456789abcde{thread}"))).unwrap();
                    });
                }
            });
        }
    }
}
