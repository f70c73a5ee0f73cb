//! Which folders are shard caches: those with a marker file at their root.
//!
//! A cache deletes files to make room, so it must never work in a folder that holds anything else. A folder becomes a
//! cache when it is new or empty; the marker is written before anything else. A folder without the marker that is not
//! empty is refused, and in a cache only files that have the name of a shard, in a folder that has the name of a
//! dataset, are ever touched (see [`super::folder::files`]).

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// Name of the marker file. It is also the file that is locked while space is reserved.
pub(super) const MARKER: &str = "arinar-cache.json";
/// How the names of markers that are still being written begin.
const MARKER_STEM: &str = "arinar-cache.";
/// Layout of the cache folder that this program uses.
const FORMAT_VERSION: u32 = 1;
const PRODUCT: &str = "arinar shard cache";
/// The folder for recovered files that mkfs makes at the root of a new disk.
const LOST_AND_FOUND: &str = "lost+found";

/// Contents of the marker file.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    product: String,
    format_version: u32,
    /// For a person who finds the folder.
    about: String,
}

/// Makes a new or empty folder a cache; does nothing if it is one already. Of several processes one writes the marker.
///
/// # Errors
/// [`DataError::NotACache`] if the folder holds something else, [`DataError::File`] if it cannot be used.
pub(crate) fn claim(folder: &Path) -> Result<(), DataError> {
    let failed = |source| DataError::File { path: folder.to_path_buf(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    if is_cache(folder)? { Ok(()) } else { write_marker(folder).map_err(failed) }
}

/// Whether a folder is a cache or can become one, as far as its contents decide it. Nothing is written.
///
/// # Errors
/// [`DataError::NotACache`] if it holds something else, [`DataError::File`] if it cannot be read.
pub fn probe(folder: &Path) -> Result<(), DataError> {
    is_cache(folder).map(drop)
}

/// Makes sure that a dataset's folder in a cache is no link, which would lead to files that are not the cache's.
///
/// # Errors
/// [`DataError::NotACache`] if it is one.
pub(super) fn check_dataset_folder(folder: &Path, dataset_id: &str) -> Result<(), DataError> {
    match std::fs::symlink_metadata(folder.join(dataset_id)) {
        Ok(facts) if !facts.is_dir() => {
            let reason = format!("its {dataset_id} is a link or a file, where the folder of a dataset belongs");
            Err(DataError::NotACache { folder: folder.to_path_buf(), reason })
        }
        _ => Ok(()),
    }
}

/// True for a cache, false for a folder that can become one.
fn is_cache(folder: &Path) -> Result<bool, DataError> {
    if has_marker(folder)? {
        return Ok(true);
    }
    let others = contents(folder).map_err(|source| DataError::File { path: folder.to_path_buf(), source })?;
    // Another process may have made it a cache since.
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

/// Names in the folder, without those that do not make it unsuitable for a cache.
fn contents(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names: io::Result<Vec<String>> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    Ok(names?.into_iter().filter(|name| name != LOST_AND_FOUND && !name.starts_with(MARKER_STEM)).collect())
}

/// Caches had no marker at first, but a file `.lock` beside the datasets' folders.
fn looks_like_an_unmarked_cache(folder: &Path, names: &[String]) -> bool {
    let dataset = |name: &str| crate::format::manifest::is_dataset_id(name) && folder.join(name).is_dir();
    names.iter().any(|name| name == ".lock") && names.iter().all(|name| name == ".lock" || dataset(name))
}

/// The marker appears whole, and never replaces one that another process has written meanwhile.
fn write_marker(folder: &Path) -> io::Result<()> {
    let marker = Marker {
        product: PRODUCT.to_owned(),
        format_version: FORMAT_VERSION,
        about: "Copies of dataset shards. They are deleted and fetched again as needed; keep nothing else here."
            .to_owned(),
    };
    // All users who share the cache read it; the umask says who they are.
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
        assert_eq!(names(), before, "something was left in a folder that was refused");
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
        let said = refusal(root.path());
        assert!(
            said.contains("is not empty") && said.contains("data.cache_dir") && !said.contains("delete it"),
            "{said}"
        );
        std::fs::remove_file(root.path().join("thesis.pdf")).unwrap();
        std::fs::write(root.path().join(".lock"), "").unwrap();
        std::fs::create_dir(root.path().join("0123456789abcdef")).unwrap();
        let said = refusal(root.path());
        assert!(said.contains("earlier version"), "{said}");
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
            let said = refusal(root.path());
            assert!(said.contains(part), "{said}");
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
                        // The first one may fill the cache before the last one looks.
                        std::fs::create_dir_all(folder.join(format!("0123456789abcde{thread}"))).unwrap();
                    });
                }
            });
        }
    }
}
