//! Copies of a remote dataset's shards on local disk, shared by all ranks and jobs of a node.
//!
//! `FOLDER/arinar-cache.json` makes a folder a cache (see `ownership.rs`): one that holds anything else is refused.
//! `FOLDER/DATASET-ID/SHARD` is a whole, verified shard. It is downloaded as `SHARD.part` under an exclusive lock on
//! that file, so that of all processes that want it one fetches and the others wait, then verified and renamed. Who
//! has a shard open holds a shared lock on it, and only files without a lock are evicted. All locks are the kernel's
//! (flock): they end with the process that holds them, however it dies.

mod fetch;
mod folder;
mod ownership;
mod room;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use crate::error::DataError;
use crate::format::manifest::{Manifest, ShardFacts};
use crate::format::mapped::{MappedShard, OpenError};
use arinar_store::Store;

use fetch::NoRoom;
pub use ownership::probe;
pub use room::{choose_window, largest_window, needed_bytes};

/// Times a shard is fetched again when what came does not verify.
const ATTEMPTS: usize = 3;

/// Where copies are kept, and how many bytes of them.
#[derive(Clone, Debug, Default)]
pub struct CacheConfig {
    /// The folder; None for the user's cache folder (a remote dataset) or no cache (a local one).
    pub folder: Option<PathBuf>,
    /// Most bytes in it, of all datasets and jobs together; None for no limit.
    pub limit: Option<u64>,
}

/// $XDG_CACHE_HOME/arinar/shards, or its usual place; the temporary folder for a user without a home.
pub fn default_cache() -> PathBuf {
    let home_cache = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home_cache);
    cache.unwrap_or_else(std::env::temp_dir).join("arinar").join("shards")
}

/// The cache of one dataset.
#[derive(Debug)]
pub(crate) struct ShardCache {
    /// Shared by all datasets.
    folder: PathBuf,
    dataset_id: String,
    limit: Option<u64>,
    /// For each shard when it is needed next; what is needed last goes first.
    next_uses: Mutex<Vec<u64>>,
    /// Set once the folder is known to be a cache.
    claimed: OnceLock<()>,
}

impl ShardCache {
    pub(crate) fn new(folder: PathBuf, limit: Option<u64>, manifest: &Manifest) -> Self {
        let next_uses = Mutex::new(vec![u64::MAX; manifest.shards.len()]);
        allow_many_open_files();
        Self { folder, dataset_id: manifest.dataset_id.clone(), limit, next_uses, claimed: OnceLock::new() }
    }

    /// Makes sure that the folder is a cache before anything in it is read, written or deleted.
    fn claim(&self) -> Result<(), DataError> {
        if self.claimed.get().is_none() {
            ownership::claim(&self.folder)?;
            ownership::check_dataset_folder(&self.folder, &self.dataset_id)?;
            let _ = self.claimed.set(());
        }
        Ok(())
    }

    pub(crate) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Whether the folder is a cache, or can become one, and the disk can hold `needed` bytes with what is in it already.
    ///
    /// # Errors
    /// [`DataError::NotACache`] when it holds something else, [`DataError::CacheDisk`] when the disk is too small,
    /// [`DataError::File`] when the folder cannot be used.
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

    /// Tells when each shard is needed next.
    pub(crate) fn set_next_uses(&self, next_uses: Vec<u64>) {
        *lock(&self.next_uses) = next_uses;
    }

    /// The shard, fetched if there is no sound copy. Where there is no room because ranks read in different windows,
    /// `release` is to close what this process holds: no rank ever waits for another while it keeps something itself.
    ///
    /// # Errors
    /// The store's, a full disk or cache, or [`DataError::Shard`] when even the store's shard does not verify.
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
            match open_shared(&path).and_then(|file| MappedShard::check(file, &path, facts, shape)) {
                Ok(shard) => return Ok(shard),
                Err(OpenError::Damaged(crate::format::shard::ShardError::Missing)) => {}
                Err(OpenError::Damaged(found)) => {
                    warn(&format!("the copy {} is damaged: {found}; fetching it again", path.display()));
                    self.set_aside(&path)?;
                    damage = Some(found);
                }
                Err(error @ OpenError::File { .. }) => return Err(error.of_shard(store.url_of(&facts.name))),
            }
            self.fetch(store, manifest, index, NoRoom::Wait(release))?;
        }
        let source = damage.unwrap_or(crate::format::shard::ShardError::Missing);
        Err(DataError::Shard { url: path.display().to_string(), source })
    }

    /// Fetches the shard if there is no copy; one that is there is checked when it is opened. False where there is no
    /// room now.
    ///
    /// # Errors
    /// As [`ShardCache::open`].
    pub(crate) fn fetch_ahead(&self, store: &Store, manifest: &Manifest, index: usize) -> Result<bool, DataError> {
        let there = self.path(&manifest.shards[index]).exists();
        if there { Ok(true) } else { self.fetch(store, manifest, index, NoRoom::GiveUp) }
    }

    /// Takes a copy out of use in which a record turned out to be damaged, unless another process has replaced it.
    pub(crate) fn reject(&self, facts: &ShardFacts, shard: &MappedShard) -> Result<(), DataError> {
        let path = self.path(facts);
        if folder::same_file(shard.file(), &path) { self.set_aside(&path) } else { Ok(()) }
    }

    /// Kept for a look at what went wrong, until its space is needed.
    fn set_aside(&self, path: &Path) -> Result<(), DataError> {
        match std::fs::rename(path, folder::with_suffix(path, folder::DAMAGED)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(DataError::File { path: path.to_path_buf(), source: error })
            }
            _ => Ok(()),
        }
    }

    fn path(&self, facts: &ShardFacts) -> PathBuf {
        self.folder.join(&self.dataset_id).join(&facts.name)
    }
}

/// Opens a copy and keeps others from evicting it.
fn open_shared(path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::file(path, source);
    let file = File::open(path).map_err(failed)?;
    file.lock_shared().map_err(failed)?;
    Ok(file)
}

/// One line for the user: the cache repairs itself, but a disk that loses bits should be known.
pub(crate) fn warn(text: &str) {
    eprintln!("arinar: warning: {text}");
}

/// A poisoned lock is as good as any: what it guards is replaced as a whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A process holds every shard of its windows open, and the usual limit is 1,024 files. Best effort: where the
/// system refuses, opening a file will say so.
fn allow_many_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
}
