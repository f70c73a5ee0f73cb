//! A shard file mapped into memory, checked as a whole when it is opened and record by record when it is read.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::DataError;
use crate::format::manifest::ShardFacts;
use crate::format::shard::{Record, ShardError, ShardLayout, View, check_shard};

/// A shard in memory whose size and XXH3 were right when it was opened.
#[derive(Debug)]
pub struct MappedShard {
    bytes: Mmap,
    layout: ShardLayout,
    /// Keeps the lock on a cached file, so that nobody evicts it.
    file: File,
}

impl MappedShard {
    /// Maps an open shard file and checks it against the manifest.
    ///
    /// # Errors
    /// [`OpenError`]: damaged, or unreadable.
    pub(crate) fn check(file: File, path: &Path, facts: &ShardFacts, shape: [usize; 3]) -> Result<Self, OpenError> {
        // SAFETY: the map is read-only, and a shard file is never written in place: encode and the cache write
        // another file and rename it over this one, which leaves the mapped file as it was. Only a foreign program
        // that writes into or truncates the file could change the bytes under us; every record's CRC32C is
        // checked on each read, and no Rust value other than plain bytes is made from the map.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|source| OpenError::file(path, source))?;
        let layout = check_shard(&bytes, facts, shape).map_err(OpenError::Damaged)?;
        Ok(Self { bytes, layout, file })
    }

    /// Reads a record and checks its CRC32C.
    ///
    /// # Errors
    /// [`ShardError::Record`] when its bytes are not those that were written.
    pub fn record(&self, record: usize, view: View) -> Result<Record<'_>, ShardError> {
        self.layout.record(&self.bytes, record, view)
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

/// Why a local shard file could not be opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// It is not what the manifest says.
    Damaged(ShardError),
    /// The system refuses.
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    /// A missing file is damage that can be repaired; anything else is the system's refusal.
    pub(crate) fn file(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::Damaged(ShardError::Missing),
            _ => Self::File { path: path.to_path_buf(), source },
        }
    }

    /// As an error of the dataset whose shard lies at `url`.
    pub(crate) fn of_shard(self, url: String) -> DataError {
        match self {
            Self::Damaged(source) => DataError::Shard { url, source },
            Self::File { path, source } => DataError::File { path, source },
        }
    }
}
