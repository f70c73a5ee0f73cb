//! A tar file from which pictures are read after it has been listed.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::read_file::{ReadError, read_span};

/// A listed tar file. It is opened for every read, because there may be more tar files than a process can keep open.
#[derive(Debug)]
pub(super) struct TarFile {
    path: PathBuf,
    version: Version,
}

/// Changes when the file is replaced or written to, so that offsets are not applied to another archive.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

impl TarFile {
    /// Returns the tar file `path`, which is open as `file`.
    pub(super) fn new(path: &Path, file: &File) -> io::Result<Self> {
        Ok(Self { path: path.to_path_buf(), version: Version::of(&file.metadata()?) })
    }

    /// Returns `length` bytes at `offset`.
    pub(super) fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, ReadError> {
        let file = File::open(&self.path)?;
        if Version::of(&file.metadata()?) != self.version {
            return Err(ReadError::Kind("is in a tar file that has changed since the start of the run".to_owned()));
        }
        read_span(&file, offset, length)
    }
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tar_file_that_changes_is_not_read() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.tar");
        std::fs::write(&path, "0123456789").expect("write");
        let tar = TarFile::new(&path, &File::open(&path).expect("open")).expect("metadata");
        assert_eq!(tar.read(2, 3).expect("read"), b"234");
        assert!(tar.read(8, 3).is_err());
        std::fs::write(folder.path().join("b.tar"), "0123456789").expect("write");
        std::fs::rename(folder.path().join("b.tar"), &path).expect("rename");
        assert!(tar.read(2, 3).expect_err("replaced").to_string().contains("has changed"));
    }
}
