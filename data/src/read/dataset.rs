//! An encoded dataset opened for reading: its manifest, and its shards, which are mapped into memory on first use.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use arinar_store::Store;

use crate::error::DataError;
use crate::format::manifest::Manifest;
use crate::format::mapped::{MappedShard, OpenError};
use crate::format::shard::{Record, ShardError, View};
use crate::read::cache::shard_cache::ShardCache;
use crate::read::cache::{CacheConfig, choose_window, default_cache, needed_bytes};
use crate::read::lock::lock;
use crate::read::shuffle::Shuffle;
use crate::reporter::Reporter;

/// Number of cached copies of a shard to reject because of damaged records before the damage is an error.
const REPLACEMENTS: usize = 3;

/// A dataset opened for reading.
#[derive(Debug)]
pub struct Dataset {
    /// Description of the dataset.
    pub manifest: Manifest,
    store: Store,
    /// `None` if the shards are read directly from a local folder.
    cache: Option<ShardCache>,
    reporter: Reporter,
    /// Index of each shard's first sample, followed by the number of samples.
    starts: Vec<u64>,
    shards: Vec<Mutex<Option<Arc<MappedShard>>>>,
}

impl Dataset {
    /// Opens the dataset at `url`. The shards of a remote dataset are cached in the user's cache folder.
    ///
    /// # Errors
    /// Returns an error if there is no dataset, or if its manifest is damaged or too new.
    pub fn open(url: &str) -> Result<Self, DataError> {
        Self::open_with_cache(url, CacheConfig::default(), Reporter::console())
    }

    /// Opens the dataset at `url` with the given cache and reports damaged copies to `reporter`. A local dataset, which
    /// may be on a slow network file system, is cached only if `cache` names a folder.
    ///
    /// # Errors
    /// Returns the same errors as [`Dataset::open`].
    pub fn open_with_cache(url: &str, cache: CacheConfig, reporter: Reporter) -> Result<Self, DataError> {
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
        let cache = folder.map(|folder| ShardCache::new(folder, cache.limit, &manifest, reporter.clone()));
        let shards = manifest.shards.iter().map(|_| Mutex::new(None)).collect();
        Ok(Self { manifest, store, cache, reporter, starts, shards })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.manifest.num_samples as usize
    }

    /// Whether there are no samples. Always false, because such a manifest is invalid.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Identity of the contents.
    pub fn id(&self) -> &str {
        &self.manifest.dataset_id
    }

    /// Store that contains the dataset.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether shards are copied to a cache before they are read.
    pub fn is_cached(&self) -> bool {
        self.cache.is_some()
    }

    /// Folder of the cache, if there is one.
    pub fn cache_folder(&self) -> Option<&Path> {
        self.cache.as_ref().map(ShardCache::folder)
    }

    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Returns the number of shards to shuffle together: `wanted` (0 for all) if given, and otherwise as many as the
    /// cache limit allows.
    ///
    /// # Errors
    /// Returns [`DataError::CacheLimit`], which names a sufficient limit, or [`DataError::CacheDisk`] if the disk is
    /// too small.
    pub fn shuffle_window(&self, wanted: Option<u64>) -> Result<u64, DataError> {
        let limit = self.cache.as_ref().and_then(ShardCache::limit);
        let window = choose_window(&self.manifest, limit, wanted)?;
        if let Some(cache) = &self.cache {
            cache.check_disk(needed_bytes(&self.manifest, window))?;
        }
        Ok(window)
    }

    /// Returns the order of the samples.
    pub fn shuffle(&self, seed: u64, window: u64) -> Shuffle {
        Shuffle::new(self.manifest.shards.iter().map(|shard| shard.count), seed, window)
    }

    /// Closes the shards that are not needed from window number `window` on, and updates the order of eviction.
    pub fn enter_window(&self, shuffle: &Shuffle, window: u64) {
        let Some(cache) = &self.cache else { return };
        let next_uses = shuffle.next_uses(window);
        self.close_shards(|shard| next_uses[shard] > window);
        cache.set_next_uses(next_uses);
    }

    /// Closes the selected shards, except those that are being opened.
    fn close_shards(&self, is_selected: impl Fn(usize) -> bool) {
        for (_, slot) in self.shards.iter().enumerate().filter(|(shard, _)| is_selected(*shard)) {
            if let Ok(mut slot) = slot.try_lock() {
                *slot = None;
            }
        }
    }

    /// Verifies the CRC32C of the record of `sample` and calls `read` with the record. A damaged copy in the cache is
    /// downloaded again.
    ///
    /// # Errors
    /// Returns [`DataError::Shard`], which names shard and record, if the data are damaged, or an error of the store.
    pub fn with_record<T>(&self, sample: u64, view: View, read: impl FnOnce(Record) -> T) -> Result<T, DataError> {
        let index = self.starts.partition_point(|&start| start <= sample) - 1;
        let record = (sample - self.starts[index]) as usize;
        let mut replaced = 0;
        loop {
            let shard = self.shard(index)?;
            match (shard.record(record, view), &self.cache) {
                (Ok(record), _) => return Ok(read(record)),
                (Err(source), Some(cache)) if replaced < REPLACEMENTS => {
                    self.reporter.warn(&format!("{}; fetching it again", self.damaged(index, source)));
                    self.replace(index, &shard, cache)?;
                    replaced += 1;
                }
                (Err(source), _) => return Err(self.damaged(index, source)),
            }
        }
    }

    /// Returns a shard, and opens and verifies it on first use.
    ///
    /// # Errors
    /// Returns the same errors as [`Dataset::with_record`].
    pub fn shard(&self, index: usize) -> Result<Arc<MappedShard>, DataError> {
        let mut slot = self.slot(index);
        if let Some(shard) = slot.as_ref() {
            return Ok(shard.clone());
        }
        let opened = match self.open_shard(index) {
            // The system allows no more memory maps (vm.max_map_count), or the address space is limited.
            Err(DataError::File { source, .. }) if source.kind() == io::ErrorKind::OutOfMemory => {
                self.close_shards(|_| true);
                self.open_shard(index)
            }
            opened => opened,
        };
        let shard = Arc::new(opened?);
        *slot = Some(shard.clone());
        Ok(shard)
    }

    fn open_shard(&self, index: usize) -> Result<MappedShard, DataError> {
        match &self.cache {
            Some(cache) => cache.open(&self.store, &self.manifest, index, &|| self.close_shards(|_| true)),
            None => self.open_in_place(index),
        }
    }

    /// Downloads a shard to the cache, if there is one, without opening it. Returns false if there is no room at
    /// present.
    ///
    /// # Errors
    /// Returns the same errors as [`Dataset::with_record`].
    pub(crate) fn prefetch(&self, index: usize) -> Result<bool, DataError> {
        self.cache.as_ref().map_or(Ok(true), |cache| cache.prefetch(&self.store, &self.manifest, index))
    }

    fn open_in_place(&self, index: usize) -> Result<MappedShard, DataError> {
        let facts = &self.manifest.shards[index];
        let path = self.store.local_path(&facts.name).unwrap_or_default();
        File::open(&path)
            .map_err(|source| OpenError::file(&path, source))
            .and_then(|file| MappedShard::open(file, &path, facts, self.manifest.moments_shape()))
            .map_err(|error| error.into_data_error(self.store.url_of(&facts.name)))
    }

    /// Closes a shard with a damaged copy and rejects the copy, unless another thread has done so.
    fn replace(&self, index: usize, shard: &Arc<MappedShard>, cache: &ShardCache) -> Result<(), DataError> {
        let mut slot = self.slot(index);
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, shard)) {
            *slot = None;
        }
        cache.reject(&self.manifest.shards[index], shard)
    }

    fn slot(&self, index: usize) -> MutexGuard<'_, Option<Arc<MappedShard>>> {
        lock(&self.shards[index])
    }

    fn damaged(&self, index: usize, source: ShardError) -> DataError {
        DataError::Shard { url: self.store.url_of(&self.manifest.shards[index].name), source }
    }
}
