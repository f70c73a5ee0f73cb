//! What can be wrong with a dataset or with how it is read.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::format::shard::ShardError;
use crate::progress::bytes_text;
use arinar_store::StoreError;

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
        "shard {url} is damaged: {source}; replace it with `arinar-data verify --deep --repair`, or run the same \
         `arinar-data encode` command again, which makes damaged shards anew and keeps the good ones"
    )]
    Shard {
        /// URL of the shard.
        url: String,
        /// What is wrong in it.
        source: ShardError,
    },
    /// A copy to repair from is a copy of something else.
    #[error("{url} is dataset {found}, not a copy of dataset {expected}; give --from a copy of the damaged dataset")]
    OtherDataset {
        /// URL of the other dataset.
        url: String,
        /// Its id.
        found: String,
        /// Id of the damaged dataset.
        expected: String,
    },
    /// A local file or cache folder failed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The cache folder holds something else than a cache.
    #[error(
        "{} cannot be the shard cache, which deletes files to make room: {reason}; \
         set data.cache_dir (or --cache-dir) to a new or empty folder",
        folder.display()
    )]
    NotACache {
        /// The folder.
        folder: PathBuf,
        /// Why it is no cache.
        reason: String,
    },
    /// The cache may not hold what the shuffle needs.
    #[error(
        "data.cache_limit of {limit} bytes is too small to shuffle {}: the shards being read and the next ones have \
         {needed} bytes; set data.cache_limit={needed} or more{}",
        shards_text(*window), if *window == 1 { "" } else { ", or a smaller data.shuffle_window" }
    )]
    CacheLimit {
        /// The limit in bytes.
        limit: u64,
        /// Shards shuffled together; 0 for all.
        window: u64,
        /// Bytes that would do.
        needed: u64,
    },
    /// The disk is too small for the cache.
    #[error(
        "the disk of the cache {} has room for {room} bytes, but the shuffle needs {needed}; \
         set data.cache_limit below {room} (the shuffle then goes in windows), or data.cache_dir to another disk",
        folder.display()
    )]
    CacheDisk {
        /// The cache folder.
        folder: PathBuf,
        /// Free bytes, with those that the cache holds already.
        room: u64,
        /// Bytes that would do.
        needed: u64,
    },
    /// Everything in the cache is in use.
    #[error(
        "the cache {} is full: its limit is {}, all of it is in use by this and other jobs, and {} more are needed; \
         raise data.cache_limit, or give this job a data.cache_dir of its own",
        folder.display(), bytes_text(*limit), bytes_text(*missing)
    )]
    CacheFull {
        /// The folder.
        folder: PathBuf,
        /// Its limit in bytes.
        limit: u64,
        /// Bytes that are missing.
        missing: u64,
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
        match self {
            Self::NoDataset { .. }
            | Self::OtherDataset { .. }
            | Self::NewerVersion { .. }
            | Self::NotACache { .. }
            | Self::CacheLimit { .. }
            | Self::CacheDisk { .. }
            | Self::Batch(_)
            | Self::Resume(_) => true,
            Self::Store(error) => error.is_configuration(),
            _ => false,
        }
    }
}

fn shards_text(window: u64) -> String {
    match window {
        0 => "the whole dataset at once".to_owned(),
        1 => "one shard at a time".to_owned(),
        shards => format!("{shards} shards together"),
    }
}
