//! What can be wrong with a dataset or with how it is read.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::shard::ShardError;
use crate::store::StoreError;

/// An error of reading a dataset; says what to do about it.
#[derive(Debug, Error)]
pub enum DataError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No manifest, so no dataset.
    #[error(
        "there is no dataset at {url} (no manifest.json); \
         make one with `arinar-data encode --images PICTURES --vae VAE --out {url}`, or let a killed encode run end"
    )]
    NoDataset {
        /// URL of the folder.
        url: String,
    },
    /// The manifest is damaged.
    #[error("{url} is not a valid manifest: {reason}; encode the pictures again")]
    Manifest {
        /// URL of the manifest.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// Written by a newer program.
    #[error("{url} has format version {found}, this program reads up to {known}; use a newer arinar")]
    NewerVersion {
        /// URL of the manifest.
        url: String,
        /// Its version.
        found: u32,
        /// The newest known one.
        known: u32,
    },
    /// A shard is damaged, truncated or gone.
    #[error(
        "shard {url} is damaged: {source}; run the same `arinar-data encode` command again, \
         which replaces damaged shards and keeps the good ones"
    )]
    Shard {
        /// URL of the shard.
        url: String,
        /// What is wrong in it.
        source: ShardError,
    },
    /// A local file or cache folder failed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The ranks cannot share a global batch.
    #[error("{0}")]
    Batch(String),
    /// A checkpoint's place in the data is not of this dataset or configuration.
    #[error("cannot go on where the checkpoint was: {0}")]
    Resume(String),
    /// The reader thread ended; the error that ended it was returned before.
    #[error("the loader stopped after an earlier error")]
    Stopped,
    /// Tensors cannot be made.
    #[error("making a batch failed: {0}")]
    Tensor(#[from] tch::TchError),
}

impl DataError {
    /// Whether a changed configuration is the cure (exit code 78) rather than a repair (exit code 1).
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::NoDataset { .. } | Self::NewerVersion { .. } | Self::Batch(_) | Self::Resume(_))
            || matches!(self, Self::Store(error) if error.is_configuration())
    }
}
