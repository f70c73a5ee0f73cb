//! An encoded dataset, opened for reading: the manifest, and shards mapped into memory when first read.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::DataError;
use crate::format::manifest::Manifest;
use crate::format::mapped::{MappedShard, OpenError};
use crate::format::shard::{Record, ShardError, View};
use crate::read::cache::{CacheConfig, ShardCache, choose_window, default_cache, needed_bytes};
use crate::read::shuffle::Shuffle;
use arinar_store::Store;

/// Times a shard is taken out of the cache because one of its records is damaged before that is an error.
const REPLACEMENTS: usize = 3;

/// A dataset: manifest and shards.
#[derive(Debug)]
pub struct Dataset {
    /// What the dataset is.
    pub manifest: Manifest,
    store: Store,
    /// None where the shards are read where they lie.
    cache: Option<ShardCache>,
    /// Index of each shard's first sample; one entry more than there are shards.
    starts: Vec<u64>,
    shards: Vec<Mutex<Option<Arc<MappedShard>>>>,
}

impl Dataset {
    /// Opens the dataset at `url`. Shards of a remote one are kept in the user's cache folder.
    ///
    /// # Errors
    /// [`DataError`] when there is no dataset or its manifest is damaged or too new.
    pub fn open(url: &str) -> Result<Self, DataError> {
        Self::open_with_cache(url, CacheConfig::default())
    }

    /// Opens the dataset at `url`, keeping copies of its shards as `cache` says; a local dataset is copied only where a
    /// folder is named (for one on a slow network file system).
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_with_cache(url: &str, cache: CacheConfig) -> Result<Self, DataError> {
        let store = Store::open(url)?;
        let manifest = Manifest::read(&store)?;
        let mut starts = vec![0];
        starts.extend(manifest.shards.iter().scan(0, |end, shard| {
            *end += shard.count;
            Some(*end)
        }));
        let folder = match (cache.folder, store.local_path("")) {
            (None, Some(_)) => None,
            (None, None) => Some(default_cache()),
            (Some(folder), _) => Some(folder),
        };
        let cache = folder.map(|folder| ShardCache::new(folder, cache.limit, &manifest));
        let shards = manifest.shards.iter().map(|_| Mutex::new(None)).collect();
        Ok(Self { manifest, store, cache, starts, shards })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.manifest.num_samples as usize
    }

    /// Whether there are none; such a manifest is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Identity of the content.
    pub fn id(&self) -> &str {
        &self.manifest.dataset_id
    }

    /// The store it lies in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether shards are copied to a cache before they are read.
    pub fn is_cached(&self) -> bool {
        self.cache.is_some()
    }

    /// Shards to shuffle together: as `wanted` (0 for all), else as many as the cache's limit allows.
    ///
    /// # Errors
    /// [`DataError::CacheLimit`] with the limit that would do; [`DataError::CacheDisk`] when the disk is too small.
    pub fn shuffle_window(&self, wanted: Option<u64>) -> Result<u64, DataError> {
        let limit = self.cache.as_ref().and_then(ShardCache::limit);
        let window = choose_window(&self.manifest, limit, wanted)?;
        if let Some(cache) = &self.cache {
            cache.check_disk(needed_bytes(&self.manifest, window))?;
        }
        Ok(window)
    }

    /// The order of its samples.
    pub fn shuffle(&self, seed: u64, window: u64) -> Shuffle {
        Shuffle::new(self.manifest.shards.iter().map(|shard| shard.count), seed, window)
    }

    /// Tells that window number `window` is being read: shards of windows past are let go.
    pub fn enter_window(&self, shuffle: &Shuffle, window: u64) {
        let Some(cache) = &self.cache else { return };
        let next_uses = shuffle.next_uses(window);
        self.close_shards(|shard| next_uses[shard] > window);
        cache.set_next_uses(next_uses);
    }

    /// Closes shards, but not one that is being opened.
    fn close_shards(&self, which: impl Fn(usize) -> bool) {
        for (_, slot) in self.shards.iter().enumerate().filter(|(shard, _)| which(*shard)) {
            if let Ok(mut slot) = slot.try_lock() {
                *slot = None;
            }
        }
    }

    /// Calls `read` with the record of `sample` after checking its CRC32C. A copy in the cache that is damaged is
    /// fetched again.
    ///
    /// # Errors
    /// [`DataError::Shard`] with shard and record named when the data are damaged; the store's errors.
    pub fn with_record<T>(&self, sample: u64, view: View, read: impl FnOnce(Record) -> T) -> Result<T, DataError> {
        let index = self.starts.partition_point(|&start| start <= sample) - 1;
        let record = (sample - self.starts[index]) as usize;
        let mut replaced = 0;
        loop {
            let shard = self.shard(index)?;
            match (shard.record(record, view), &self.cache) {
                (Ok(record), _) => return Ok(read(record)),
                (Err(source), Some(cache)) if replaced < REPLACEMENTS => {
                    crate::read::cache::warn(&format!("{}; fetching it again", self.damaged(index, source)));
                    self.replace(index, &shard, cache)?;
                    replaced += 1;
                }
                (Err(source), _) => return Err(self.damaged(index, source)),
            }
        }
    }

    /// The shard, opened and checked if this is the first use of it.
    ///
    /// # Errors
    /// As [`Dataset::with_record`].
    pub fn shard(&self, index: usize) -> Result<Arc<MappedShard>, DataError> {
        let mut slot = self.slot(index);
        if let Some(shard) = slot.as_ref() {
            return Ok(shard.clone());
        }
        let shard = Arc::new(match &self.cache {
            Some(cache) => cache.open(&self.store, &self.manifest, index, &|| self.close_shards(|_| true))?,
            None => self.open_in_place(index)?,
        });
        *slot = Some(shard.clone());
        Ok(shard)
    }

    /// Puts the shard into the cache, where there is one, without opening it; false where there is no room now.
    ///
    /// # Errors
    /// As [`Dataset::with_record`].
    pub(crate) fn fetch_ahead(&self, index: usize) -> Result<bool, DataError> {
        self.cache.as_ref().map_or(Ok(true), |cache| cache.fetch_ahead(&self.store, &self.manifest, index))
    }

    fn open_in_place(&self, index: usize) -> Result<MappedShard, DataError> {
        let facts = &self.manifest.shards[index];
        let path = self.store.local_path(&facts.name).unwrap_or_default();
        File::open(&path)
            .map_err(|source| OpenError::file(&path, source))
            .and_then(|file| MappedShard::check(file, &path, facts, self.manifest.moments_shape()))
            .map_err(|error| error.of_shard(self.store.url_of(&facts.name)))
    }

    /// Forgets a shard whose copy is damaged, unless that has been done since it was read.
    fn replace(&self, index: usize, shard: &Arc<MappedShard>, cache: &ShardCache) -> Result<(), DataError> {
        let mut slot = self.slot(index);
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, shard)) {
            *slot = None;
        }
        cache.reject(&self.manifest.shards[index], shard)
    }

    /// A panic while the lock was held leaves at worst an empty slot, so a poisoned lock is as good as any.
    fn slot(&self, index: usize) -> MutexGuard<'_, Option<Arc<MappedShard>>> {
        self.shards[index].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn damaged(&self, index: usize, source: ShardError) -> DataError {
        DataError::Shard { url: self.store.url_of(&self.manifest.shards[index].name), source }
    }
}
