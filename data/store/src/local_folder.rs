//! The check that a local folder can be written to, before work that takes long.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Reason why a folder cannot be used. The user must change the path, or what is at it.
#[derive(Debug, Error)]
pub enum FolderError {
    /// A file has the name of the folder or of one of its parents.
    #[error("{} is a file, not a folder", .0.display())]
    File(PathBuf),
    /// A link has the name of the folder or of one of its parents, and its target does not exist.
    #[error("{} is a link to {}, which does not exist", link.display(), target.display())]
    DanglingLink {
        /// The link.
        link: PathBuf,
        /// The path in the link.
        target: PathBuf,
    },
    /// Files cannot be created in the folder, or in the nearest parent that exists.
    #[error("cannot write to {} ({source})", folder.display())]
    NotWritable {
        /// The folder.
        folder: PathBuf,
        /// Error reported by the system.
        source: io::Error,
    },
    /// The path cannot be looked up.
    #[error("{}: {source}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Error reported by the system.
        source: io::Error,
    },
}

impl FolderError {
    /// Whether the disk has no space left, which is a matter of time rather than of the path.
    pub fn is_full_disk(&self) -> bool {
        match self {
            Self::NotWritable { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// Returns the folder if it exists, or otherwise its nearest parent that does.
///
/// # Errors
/// Returns an error if a file or a dangling link is in the way, or if the path cannot be looked up.
pub fn nearest_folder(path: &Path) -> Result<PathBuf, FolderError> {
    let failed = |path: &Path, source| FolderError::Path { path: path.to_owned(), source };
    let path = std::path::absolute(path).map_err(|source| failed(path, source))?;
    // With a slash at its end, the path of a file would be reported as missing.
    let path: PathBuf = path.components().collect();
    for folder in path.ancestors() {
        match std::fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => return Ok(folder.to_owned()),
            Ok(_) => return Err(FolderError::File(folder.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Ok(target) = std::fs::read_link(folder) {
                    return Err(FolderError::DanglingLink { link: folder.to_owned(), target });
                }
            }
            // A parent is a file.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => return Err(failed(folder, error)),
        }
    }
    Err(failed(&path, io::ErrorKind::NotFound.into()))
}

/// Checks that files can be created in a folder or, if it does not exist, in its nearest existing parent. Leaves nothing
/// behind: the system deletes the unnamed file of the check however this process ends. Returns the folder that exists.
///
/// # Errors
/// Returns the reason why it cannot be written to.
pub fn check_writable(path: &Path) -> Result<PathBuf, FolderError> {
    let folder = nearest_folder(path)?;
    let written = tempfile::tempfile_in(&folder).and_then(|mut file| file.write_all(b"check"));
    match written {
        Ok(()) => Ok(folder),
        Err(source) => Err(FolderError::NotWritable { folder, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_missing_folder_is_judged_by_its_parent_and_not_created() {
        let root = tempfile::tempdir().expect("a folder");
        assert_eq!(check_writable(&root.path().join("a/b")).expect("writable"), root.path());
        assert_eq!(check_writable(root.path()).expect("writable"), root.path());
        assert_eq!(std::fs::read_dir(root.path()).expect("the folder").count(), 0);
    }

    #[test]
    fn files_and_dangling_links_in_the_way_are_named() {
        let root = tempfile::tempdir().expect("a folder");
        let path = |name: &str| root.path().join(name);
        std::fs::write(path("file"), "").expect("a file");
        symlink("nowhere", path("dangling")).expect("a link");
        symlink("loop", path("loop")).expect("a link");
        symlink(root.path(), path("good")).expect("a link");
        let message = |name: &str| check_writable(&path(name)).expect_err(name).to_string();
        for name in ["file", "file/", "file/below", "file/far/below", "good/file/below"] {
            assert!(message(name).ends_with("file is a file, not a folder"), "{}", message(name));
        }
        for name in ["dangling", "dangling/", "dangling/below", "good/dangling"] {
            assert!(
                message(name).ends_with("dangling is a link to nowhere, which does not exist"),
                "{}",
                message(name)
            );
        }
        assert!(message("loop").contains("loop"), "{}", message("loop"));
        assert!(message(&"long".repeat(100)).contains("longlong"), "{}", message("loop"));
        assert!(check_writable(&path("good/new")).is_ok());
        assert!(check_writable(Path::new("")).is_err());
        let error = check_writable(Path::new("/proc/nowhere")).expect_err("/proc");
        assert!(error.to_string().starts_with("cannot write to /proc (") && !error.is_full_disk(), "{error}");
    }
}
