//! Shard files mapped into memory. The whole file is verified when it is opened, and each record when it is read.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::facts::ShardFacts;
use super::shard::{Record, ShardError, ShardLayout, View, check_shard};
use crate::error::DataError;

/// A shard in memory whose size and XXH3 were correct when it was opened.
#[derive(Debug)]
pub struct MappedShard {
    bytes: Mmap,
    layout: ShardLayout,
    /// Device and inode of the file.
    identity: (u64, u64),
}

impl MappedShard {
    /// Maps an open shard file and compares it with the manifest. The file is closed, so that the number of shards in memory does
    /// not count towards the limit on open files. The kernel keeps a lock on the file (flock) while it is mapped.
    ///
    /// # Errors
    /// Returns an error if the file is damaged or unreadable.
    pub(crate) fn open(file: File, path: &Path, facts: &ShardFacts, shape: [usize; 3]) -> Result<Self, OpenError> {
        // SAFETY: the map is read-only, and a shard file is never written in place: encode and the cache write another
        // file and rename it over this one, which leaves the mapped file unchanged. Only a foreign program that writes
        // to the file or truncates it could change the mapped bytes. Every read verifies the record's CRC32C, and no
        // Rust value other than plain bytes is created from the map.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|source| OpenError::file(path, source))?;
        let identity = file.metadata().map(|facts| (facts.dev(), facts.ino()));
        let identity = identity.map_err(|source| OpenError::file(path, source))?;
        let layout = check_shard(&bytes, facts, shape).map_err(OpenError::Damaged)?;
        Ok(Self { bytes, layout, identity })
    }

    /// Reads a record and verifies its CRC32C.
    ///
    /// # Errors
    /// Returns [`ShardError::Record`] if the record is damaged.
    pub fn record(&self, record: usize, view: View) -> Result<Record<'_>, ShardError> {
        self.layout.record(&self.bytes, record, view)
    }

    /// Returns whether the file at `path` is the mapped one.
    pub(crate) fn is_file(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|facts| (facts.dev(), facts.ino()) == self.identity)
    }
}

/// Reason why a local shard file could not be opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The file does not match the manifest.
    Damaged(ShardError),
    /// The system cannot read the file.
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error reported by the system.
        source: io::Error,
    },
}

impl OpenError {
    /// Classifies an error of the system: a missing file is damage that can be repaired, any other error is not.
    pub(crate) fn file(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::Damaged(ShardError::Missing),
            _ => Self::File { path: path.to_path_buf(), source },
        }
    }

    /// Converts to the error of the dataset whose shard has this `url`.
    pub(crate) fn into_data_error(self, url: String) -> DataError {
        match self {
            Self::Damaged(source) => DataError::Shard { url, source },
            Self::File { path, source } => DataError::File { path, source },
        }
    }
}
