//! Errors of reading a dataset.

use std::io;
use std::path::PathBuf;

use arinar_store::file_lock::NO_LOCKS;
use arinar_store::{StoreError, is_wrong_folder};
use thiserror::Error;

use crate::format::shard::ShardError;
use crate::text::bytes_text;

/// An error of reading a dataset. Its message names the remedy.
#[derive(Debug, Error)]
pub enum DataError {
    /// The store reported an error.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder has no manifest and therefore no dataset.
    #[error(
        "there is no dataset at {url} (no manifest.json); \
         make one with `arinar-data encode --images PICTURES --vae VAE --out {url}`, or finish an interrupted encode run"
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
        /// Description of the damage.
        reason: String,
    },
    /// The manifest was written by a newer program.
    #[error("{url} has format version {found}, this program reads up to {known}; use a newer arinar")]
    NewerVersion {
        /// URL of the manifest.
        url: String,
        /// Version of the manifest.
        found: u32,
        /// Newest version that this program reads.
        known: u32,
    },
    /// A shard is damaged, truncated or missing.
    #[error(
        "shard {url} is damaged: {source}; replace it with `arinar-data verify --deep --repair`, or run the same \
         `arinar-data encode` command again, which rewrites damaged shards and keeps the intact ones"
    )]
    Shard {
        /// URL of the shard.
        url: String,
        /// Description of the damage.
        source: ShardError,
    },
    /// The dataset given as a source for repairs is a different dataset.
    #[error("{url} is dataset {found}, not a copy of dataset {expected}; give --from a copy of the damaged dataset")]
    OtherDataset {
        /// URL of the other dataset.
        url: String,
        /// Id of the other dataset.
        found: String,
        /// Id of the damaged dataset.
        expected: String,
    },
    /// A local file or the cache folder cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error reported by the system.
        source: io::Error,
    },
    /// The file system of the cache folder has no locks.
    #[error(
        "the cache {} cannot be locked ({source}): {NO_LOCKS}; set data.cache_dir (or --cache-dir) to a folder on a local \
         disk",
        folder.display()
    )]
    NoLocks {
        /// Path of the cache folder.
        folder: PathBuf,
        /// Error reported by the system.
        source: io::Error,
    },
    /// The cache folder contains other files.
    #[error(
        "{} cannot be the shard cache, which deletes files to make room: {reason}; \
         set data.cache_dir (or --cache-dir) to a new or empty folder",
        folder.display()
    )]
    NotACache {
        /// Path of the folder.
        folder: PathBuf,
        /// Reason why the folder was rejected.
        reason: String,
    },
    /// The cache limit is smaller than the shuffle requires.
    #[error(
        "data.cache_limit of {limit} bytes is too small to shuffle {}: the shards being read and the next ones have \
         {needed} bytes; set data.cache_limit={needed} or more{}",
        shards_text(*window), if *window == 1 { "" } else { ", or a smaller data.shuffle_window" }
    )]
    CacheLimit {
        /// Limit in bytes.
        limit: u64,
        /// Number of shards shuffled together; 0 for all.
        window: u64,
        /// Bytes that the shuffle requires.
        needed: u64,
    },
    /// The disk is too small for the cache.
    #[error(
        "the disk of the cache {} has room for {room} bytes, but the shuffle needs {needed}; \
         set data.cache_limit below {room} (which shuffles in windows), or data.cache_dir to another disk",
        folder.display()
    )]
    CacheDisk {
        /// Path of the cache folder.
        folder: PathBuf,
        /// Free bytes plus the bytes that the cache already occupies.
        room: u64,
        /// Bytes that the shuffle requires.
        needed: u64,
    },
    /// Every shard in the cache is in use.
    #[error(
        "the cache {} is full: its limit is {}, all of it is in use by this and other jobs, and {} more are needed; \
         raise data.cache_limit, or give this job a separate data.cache_dir",
        folder.display(), bytes_text(*limit), bytes_text(*missing)
    )]
    CacheFull {
        /// Path of the cache folder.
        folder: PathBuf,
        /// Limit in bytes.
        limit: u64,
        /// Bytes that are missing.
        missing: u64,
    },
    /// The ranks cannot share the global batch evenly.
    #[error("{0}")]
    Batch(String),
    /// The URL of a synthetic dataset does not end with a number of samples.
    #[error("data.url: {0:?} is not a number of samples; write synthetic: or synthetic:1000")]
    SyntheticUrl(String),
    /// The position in a checkpoint belongs to another dataset or configuration.
    #[error("cannot resume at the checkpoint's position in the data: {0}")]
    Resume(String),
    /// The checkpoint belongs to other synthetic data.
    #[error(
        "the checkpoint was saved with {saved}, not with {ours}; restore the earlier settings or set run.dir to a new \
         folder"
    )]
    SyntheticResume {
        /// Data of the checkpoint.
        saved: String,
        /// Data of the configuration.
        ours: String,
    },
    /// The reader thread has ended after returning another error.
    #[error("the loader stopped after an earlier error")]
    Stopped,
    /// libtorch cannot create the tensors of a batch.
    #[error("cannot create the tensors of a batch: {0}")]
    Tensor(#[from] tch::TchError),
}

impl DataError {
    /// Whether the remedy is a changed configuration (exit code 78) rather than a repair (exit code 1).
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::NoDataset { .. }
            | Self::OtherDataset { .. }
            | Self::Manifest { .. }
            | Self::NewerVersion { .. }
            | Self::NotACache { .. }
            | Self::NoLocks { .. }
            | Self::CacheLimit { .. }
            | Self::CacheDisk { .. }
            | Self::Batch(_)
            | Self::SyntheticUrl(_)
            | Self::Resume(_)
            | Self::SyntheticResume { .. } => true,
            Self::Store(error) => error.is_configuration(),
            Self::File { source, .. } => is_wrong_folder(source),
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
