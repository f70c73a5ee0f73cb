//! An encoded dataset, opened for reading: the manifest, and shards mapped into memory when first read.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use memmap2::Mmap;

use crate::error::DataError;
use crate::manifest::{Manifest, ShardFacts};
use crate::shard::{Record, ShardError, ShardLayout, View, check_shard};
use crate::store::Store;

/// A shard in memory whose size and XXH3 were right when it was opened.
#[derive(Debug)]
pub struct MappedShard {
    file: Mmap,
    layout: ShardLayout,
}

impl MappedShard {
    /// Reads a record and checks its CRC32C.
    pub fn record(&self, record: usize, view: View) -> Result<Record<'_>, ShardError> {
        self.layout.record(&self.file, record, view)
    }
}

/// A dataset: manifest and shards.
#[derive(Debug)]
pub struct Dataset {
    /// What the dataset is.
    pub manifest: Manifest,
    store: Store,
    cache_folder: Option<PathBuf>,
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
        Self::open_with_cache(url, None)
    }

    /// Opens the dataset at `url`, keeping copies of its shards in `cache_folder` where one is given (for a folder on a
    /// slow network file system too); without one as [`Dataset::open`].
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_with_cache(url: &str, cache_folder: Option<&Path>) -> Result<Self, DataError> {
        let store = Store::open(url)?;
        let manifest = Manifest::read(&store)?;
        let mut starts = vec![0];
        starts.extend(manifest.shards.iter().scan(0, |end, shard| {
            *end += shard.count;
            Some(*end)
        }));
        let cache_folder = match (cache_folder, store.local_path("")) {
            (None, Some(_)) => None,
            (None, None) => Some(default_cache()),
            (Some(folder), _) => Some(folder.to_path_buf()),
        };
        let cache_folder = cache_folder.map(|folder| folder.join(&manifest.dataset_id));
        let shards = manifest.shards.iter().map(|_| Mutex::new(None)).collect();
        Ok(Self { manifest, store, cache_folder, starts, shards })
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

    /// Calls `read` with the record of `sample` after checking its CRC32C.
    ///
    /// # Errors
    /// [`DataError::Shard`] with shard and record named when the data are damaged; the store's errors.
    pub fn with_record<T>(&self, sample: u64, view: View, read: impl FnOnce(Record) -> T) -> Result<T, DataError> {
        let index = self.starts.partition_point(|&start| start <= sample) - 1;
        let record = (sample - self.starts[index]) as usize;
        let shard = self.shard(index)?;
        let record = shard.record(record, view).map_err(|source| self.damaged(index, source))?;
        Ok(read(record))
    }

    /// The shard, opened and checked if this is the first use of it.
    pub fn shard(&self, index: usize) -> Result<Arc<MappedShard>, DataError> {
        // A panic while the lock was held leaves at worst an empty slot, so a poisoned lock is as good as any.
        let mut slot = self.shards[index].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(shard) = slot.as_ref() {
            return Ok(shard.clone());
        }
        let shard = Arc::new(self.open_shard(index)?);
        *slot = Some(shard.clone());
        Ok(shard)
    }

    fn open_shard(&self, index: usize) -> Result<MappedShard, DataError> {
        let facts = &self.manifest.shards[index];
        let Some(cache_folder) = &self.cache_folder else {
            let path = self.store.local_path(&facts.name).unwrap_or_default();
            return self.map_checked(&path, facts).map_err(|error| error.into_data_error(self, index));
        };
        let path = cache_folder.join(&facts.name);
        if let Ok(shard) = self.map_checked(&path, facts) {
            return Ok(shard);
        }
        // Not there yet, or damaged in the cache: the store has the truth.
        self.download(cache_folder, facts)?;
        self.map_checked(&path, facts).map_err(|error| error.into_data_error(self, index))
    }

    fn download(&self, folder: &Path, facts: &ShardFacts) -> Result<(), DataError> {
        let failed = |path: &Path, source: io::Error| DataError::File { path: path.to_path_buf(), source };
        let bytes = self.store.get(&facts.name)?;
        std::fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
        let path = folder.join(&facts.name);
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|source| failed(folder, source))?;
        io::Write::write_all(&mut file, &bytes).map_err(|source| failed(&path, source))?;
        file.persist(&path).map_err(|error| failed(&path, error.error))?;
        Ok(())
    }

    fn map_checked(&self, path: &Path, facts: &ShardFacts) -> Result<MappedShard, OpenError> {
        let file = File::open(path).map_err(|source| OpenError::file(path, source))?;
        // SAFETY: the map is read-only, and a shard file is never written in place: encode and the cache write
        // another file and rename it over this one, which leaves the mapped file as it was. Only a foreign program
        // that writes into or truncates the file could change the bytes under us; every record's CRC32C is
        // checked on each read, and no Rust value other than plain bytes is made from the map.
        let file = unsafe { Mmap::map(&file) }.map_err(|source| OpenError::file(path, source))?;
        let layout = check_shard(&file, facts, self.manifest.moments_shape()).map_err(OpenError::Damaged)?;
        Ok(MappedShard { file, layout })
    }

    fn damaged(&self, index: usize, source: ShardError) -> DataError {
        DataError::Shard { url: self.store.url_of(&self.manifest.shards[index].name), source }
    }
}

/// Why a local shard file could not be opened.
enum OpenError {
    Damaged(ShardError),
    File { path: PathBuf, source: io::Error },
}

impl OpenError {
    fn file(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::Damaged(ShardError::Missing),
            _ => Self::File { path: path.to_path_buf(), source },
        }
    }

    fn into_data_error(self, dataset: &Dataset, index: usize) -> DataError {
        match self {
            Self::Damaged(source) => dataset.damaged(index, source),
            Self::File { path, source } => DataError::File { path, source },
        }
    }
}

/// $XDG_CACHE_HOME/arinar/shards, or its usual place; the temporary folder for a user without a home.
pub(crate) fn default_cache() -> PathBuf {
    let home_cache = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home_cache);
    cache.unwrap_or_else(std::env::temp_dir).join("arinar").join("shards")
}
