//! The cache of one dataset, as one process sees it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use super::{folder, ownership};
use crate::error::DataError;
use crate::format::facts::ShardFacts;
use crate::format::manifest::Manifest;
use crate::format::mapped::MappedShard;
use crate::read::lock::lock;
use crate::reporter::Reporter;

/// The cache of one dataset.
#[derive(Debug)]
pub(crate) struct ShardCache {
    /// Folder shared by all datasets.
    pub(super) folder: PathBuf,
    pub(super) dataset_id: String,
    pub(super) limit: Option<u64>,
    /// Number of the window that needs each shard next. The shard with the farthest next use is evicted first.
    next_uses: Mutex<Vec<u64>>,
    /// Set when the folder is known to be a cache.
    claimed: OnceLock<()>,
    pub(super) reporter: Reporter,
}

impl ShardCache {
    pub(crate) fn new(folder: PathBuf, limit: Option<u64>, manifest: &Manifest, reporter: Reporter) -> Self {
        let next_uses = Mutex::new(vec![u64::MAX; manifest.shards.len()]);
        Self { folder, dataset_id: manifest.dataset_id.clone(), limit, next_uses, claimed: OnceLock::new(), reporter }
    }

    /// Makes sure that the folder is a cache before any file in it is read, written or deleted.
    pub(super) fn claim(&self) -> Result<(), DataError> {
        if self.claimed.get().is_none() {
            ownership::claim(&self.folder)?;
            ownership::check_dataset_folder(&self.folder, &self.dataset_id)?;
            let _ = self.claimed.set(());
        }
        Ok(())
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Checks that the folder is a cache, or can become one, and that the disk can hold `needed` bytes of shards.
    ///
    /// # Errors
    /// Returns [`DataError::NotACache`] if the folder has other contents, [`DataError::NoLocks`], [`DataError::CacheDisk`] if the disk is too
    /// small, and [`DataError::File`] if the folder cannot be used.
    pub(crate) fn check_disk(&self, needed: u64) -> Result<(), DataError> {
        self.claim()?;
        let failed = |source| DataError::File { path: self.folder.clone(), source };
        let used: u64 = folder::files(&self.folder).map_err(failed)?.iter().map(|file| file.bytes).sum();
        let disk = rustix::fs::statvfs(&self.folder).map_err(|error| failed(error.into()))?;
        let room = used + disk.f_bavail * disk.f_frsize;
        if needed <= room {
            return Ok(());
        }
        Err(DataError::CacheDisk { folder: self.folder.clone(), room, needed })
    }

    /// Sets the window that needs each shard next.
    pub(crate) fn set_next_uses(&self, next_uses: Vec<u64>) {
        *lock(&self.next_uses) = next_uses;
    }

    pub(super) fn next_uses(&self) -> Vec<u64> {
        lock(&self.next_uses).clone()
    }

    /// Takes a copy with a damaged record out of use, unless another process has replaced it.
    pub(crate) fn reject(&self, facts: &ShardFacts, shard: &MappedShard) -> Result<(), DataError> {
        let path = self.path(facts);
        if shard.is_file(&path) { self.set_aside(&path) } else { Ok(()) }
    }

    /// Renames a damaged copy, so that it can be examined until its space is needed.
    pub(super) fn set_aside(&self, path: &Path) -> Result<(), DataError> {
        match std::fs::rename(path, folder::with_suffix(path, folder::DAMAGED)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(DataError::File { path: path.to_path_buf(), source: error })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn path(&self, facts: &ShardFacts) -> PathBuf {
        self.folder.join(&self.dataset_id).join(&facts.name)
    }
}
