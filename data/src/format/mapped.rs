//! Shard files mapped into memory. The whole file is verified when it is opened, and each record when it is read.

use std::fs::File;
use std::io;
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
    /// Holds the lock that protects a cached file from eviction.
    file: File,
}

impl MappedShard {
    /// Maps an open shard file and compares it with the manifest.
    ///
    /// # Errors
    /// Returns an error if the file is damaged or unreadable.
    pub(crate) fn open(file: File, path: &Path, facts: &ShardFacts, shape: [usize; 3]) -> Result<Self, OpenError> {
        // SAFETY: the map is read-only, and a shard file is never written in place: encode and the cache write another
        // file and rename it over this one, which leaves the mapped file unchanged. Only a foreign program that writes
        // to the file or truncates it could change the mapped bytes. Every read verifies the record's CRC32C, and no
        // Rust value other than plain bytes is created from the map.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|source| OpenError::file(path, source))?;
        let layout = check_shard(&bytes, facts, shape).map_err(OpenError::Damaged)?;
        Ok(Self { bytes, layout, file })
    }

    /// Reads a record and verifies its CRC32C.
    ///
    /// # Errors
    /// Returns [`ShardError::Record`] if the record is damaged.
    pub fn record(&self, record: usize, view: View) -> Result<Record<'_>, ShardError> {
        self.layout.record(&self.bytes, record, view)
    }

    /// Returns the open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
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
