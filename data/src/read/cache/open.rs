//! Opening a shard: from an intact copy, or after downloading it.

use std::fs::File;
use std::path::Path;

use super::fetch::{ATTEMPTS, NoRoom};
use super::shard_cache::ShardCache;
use crate::error::DataError;
use crate::format::manifest::Manifest;
use crate::format::mapped::{MappedShard, OpenError};
use crate::format::shard::ShardError;
use arinar_store::Store;

impl ShardCache {
    /// Opens the shard, and downloads it first if there is no intact copy. If there is no room because ranks read
    /// different windows, it calls `release`, which must close all shards that this process holds: a rank never waits
    /// for another rank while it holds shards itself.
    ///
    /// # Errors
    /// Returns an error if the store fails, if the disk or the cache is full, or [`DataError::Shard`] if the shard in
    /// the store is damaged.
    pub(crate) fn open(
        &self,
        store: &Store,
        manifest: &Manifest,
        index: usize,
        release: &dyn Fn(),
    ) -> Result<MappedShard, DataError> {
        self.claim()?;
        let (facts, shape) = (&manifest.shards[index], manifest.moments_shape());
        let path = self.path(facts);
        let mut damage = None;
        for _ in 0..ATTEMPTS {
            match open_shared(&path).and_then(|file| MappedShard::open(file, &path, facts, shape)) {
                Ok(shard) => return Ok(shard),
                Err(OpenError::Damaged(ShardError::Missing)) => {}
                Err(OpenError::Damaged(found)) => {
                    let text = format!("the copy {} is damaged: {found}; fetching it again", path.display());
                    self.reporter.warn(&text);
                    self.set_aside(&path)?;
                    damage = Some(found);
                }
                Err(error @ OpenError::File { .. }) => return Err(error.into_data_error(store.url_of(&facts.name))),
            }
            self.fetch(store, manifest, index, NoRoom::Wait(release))?;
        }
        let source = damage.unwrap_or(ShardError::Missing);
        Err(DataError::Shard { url: path.display().to_string(), source })
    }

    /// Downloads the shard if there is no copy. An existing copy is verified only when it is opened. Returns false if
    /// there is no room at present.
    ///
    /// # Errors
    /// Returns the same errors as [`ShardCache::open`].
    pub(crate) fn prefetch(&self, store: &Store, manifest: &Manifest, index: usize) -> Result<bool, DataError> {
        let exists = self.path(&manifest.shards[index]).exists();
        if exists { Ok(true) } else { self.fetch(store, manifest, index, NoRoom::GiveUp) }
    }
}

/// Opens a copy under a shared lock, which protects it from eviction.
fn open_shared(path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::file(path, source);
    let file = File::open(path).map_err(failed)?;
    file.lock_shared().map_err(failed)?;
    Ok(file)
}
