//! The local folder in which checkpoints of a run in a remote store wait to be sent there.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arinar_store::Store;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    CheckpointError,
    manifest::{self, Manifest, folder},
    snapshot::disk_error,
    step_folder,
};

/// Where downloaded checkpoints lie until they are restored.
const FETCHED: &str = "fetched";

/// A run's spool on this machine, shared by the machine's ranks.
#[derive(Clone)]
pub struct Spool {
    store: Arc<Store>,
    path: PathBuf,
    limit: Option<u64>,
}

/// What is in a run's store and what waits in the spool, when a run starts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Stock {
    /// Steps of the checkpoints in the store, ascending.
    pub stored: Vec<u64>,
    /// Whole checkpoints in the spool that are newer than those.
    pub leftovers: Vec<Manifest>,
    /// The newest in the store, if the spool holds it too.
    pub newest: Option<Manifest>,
}

impl Spool {
    /// Where the spool of the run at `run` is, below `base` (`checkpoint.spool_dir`) or the user's cache folder.
    ///
    /// # Errors
    /// [`CheckpointError::NoCacheFolder`].
    pub fn folder_of(base: Option<&str>, run: &str) -> Result<PathBuf, CheckpointError> {
        let base = match base {
            Some(base) => PathBuf::from(base),
            None => cache_folder()?.join("arinar/spool"),
        };
        Ok(base.join(format!("{:016x}", xxh3_64(run.trim_end_matches('/').as_bytes()))))
    }

    /// The spool of the run at `run`, below `base` (`checkpoint.spool_dir`) or the user's cache folder. It may hold
    /// `limit` bytes.
    ///
    /// # Errors
    /// When there is no such folder and none can be made.
    pub fn open(base: Option<&str>, limit: Option<u64>, run: &str) -> Result<Self, CheckpointError> {
        let path = Self::folder_of(base, run)?;
        std::fs::create_dir_all(&path).map_err(|error| disk_error(&path, error))?;
        let store = Arc::new(Store::open(&path.display().to_string())?);
        Ok(Self { store, path, limit })
    }

    /// The folder as a store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder for downloaded checkpoints; empty at first.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn fetched(&self) -> Result<Store, CheckpointError> {
        Ok(Store::open(&self.path.join(FETCHED).display().to_string())?)
    }

    /// Deletes downloaded checkpoints.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn forget_fetched(&self) -> Result<(), CheckpointError> {
        let path = self.path.join(FETCHED);
        let fetched = self.fetched()?;
        for entry in manifest::listed(&fetched)? {
            step_folder::delete(&fetched, entry.step)?;
        }
        match std::fs::remove_dir(&path) {
            Ok(()) => Ok(()),
            // Nothing was downloaded, or somebody keeps something else there.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
            Err(error) => Err(disk_error(&path, error).into()),
        }
    }

    /// Looks at store and spool.
    pub(super) fn take_stock(&self, remote: &Store) -> Result<Stock, CheckpointError> {
        let committed = |store: &Store| -> Result<Vec<u64>, CheckpointError> {
            let listed = manifest::listed(store)?;
            Ok(listed.into_iter().filter(|entry| entry.committed).map(|entry| entry.step).collect())
        };
        let stored = committed(remote)?;
        let mut stock = Stock { stored, ..Stock::default() };
        for step in committed(&self.store)? {
            // One that does not parse is no checkpoint.
            let Ok(manifest) = manifest::read(&self.store, step) else { continue };
            match stock.stored.last() {
                Some(&newest) if step < newest => {}
                Some(&newest) if step == newest => {
                    let same = manifest::read(remote, step).is_ok_and(|theirs| theirs == manifest);
                    stock.newest = same.then_some(manifest);
                }
                _ => stock.leftovers.push(manifest),
            }
        }
        Ok(stock)
    }

    /// Deletes everything but the checkpoints of `stock`.
    pub(super) fn keep_only(&self, stock: &Stock) -> Result<(), CheckpointError> {
        self.forget_fetched()?;
        self.delete_others(stock)
    }

    /// Deletes all checkpoints but those of `stock`; a downloaded one stays.
    pub(super) fn delete_others(&self, stock: &Stock) -> Result<(), CheckpointError> {
        for entry in manifest::listed(&self.store)? {
            let kept = stock.leftovers.iter().chain(&stock.newest).find(|kept| kept.step == entry.step);
            let ours = || manifest::read(&self.store, entry.step).ok();
            if kept.is_none() || kept != ours().as_ref() {
                step_folder::delete(&self.store, entry.step)?;
            }
        }
        Ok(())
    }

    /// How many of a checkpoint's files lie here in their full length.
    pub(super) fn count_files(&self, manifest: &Manifest) -> usize {
        let folder = self.path.join(folder(manifest.step));
        let here = |name: &str, bytes| std::fs::metadata(folder.join(name)).is_ok_and(|file| file.len() == bytes);
        manifest.files.iter().filter(|entry| here(&entry.name, entry.bytes)).count()
    }

    /// Makes sure that `need` bytes fit, deleting copies of checkpoints that the store holds (`spare`) where it must.
    ///
    /// # Errors
    /// [`CheckpointError::SpoolFull`].
    pub(super) fn make_room(&self, need: u64, spare: &[u64]) -> Result<(), CheckpointError> {
        let mut spare = spare.iter();
        while let Some(what) = shortage(self.limit, self.used()?, self.free()?, need) {
            match spare.next() {
                Some(&step) => step_folder::delete(&self.store, step)?,
                None => return Err(CheckpointError::SpoolFull { path: self.path.clone(), what }),
            }
        }
        Ok(())
    }

    fn used(&self) -> Result<u64, CheckpointError> {
        Ok(self.store.list("")?.iter().map(|object| object.bytes).sum())
    }

    /// Bytes that the disk can still take.
    fn free(&self) -> Result<u64, CheckpointError> {
        let disk = rustix::fs::statvfs(&self.path).map_err(|error| disk_error(&self.path, error.into()))?;
        Ok(disk.f_bavail * disk.f_frsize)
    }
}

/// What stands in the way of `need` more bytes, for people.
fn shortage(limit: Option<u64>, used: u64, free: u64, need: u64) -> Option<String> {
    let size = indicatif::DecimalBytes;
    if let Some(limit) = limit.filter(|limit| used + need > *limit) {
        let (limit, used, need) = (size(limit), size(used), size(need));
        return Some(format!("checkpoint.spool_limit is {limit}, {used} are used and {need} needed"));
    }
    (need > free).then(|| format!("its disk has {} left and {} are needed", size(free), size(need)))
}

/// Where this user's programs keep what can be made again.
fn cache_folder() -> Result<PathBuf, CheckpointError> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache"))).ok_or(CheckpointError::NoCacheFolder)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::checkpoint::{FORMAT_VERSION, FileEntry, MANIFEST};

    #[test]
    fn a_shortage_says_what_is_short() {
        assert_eq!(shortage(None, 10, 5, 5), None);
        assert_eq!(shortage(Some(15), 10, 5, 5), None);
        assert!(shortage(Some(14), 10, 5, 5).unwrap().contains("spool_limit is 14 B"));
        assert!(shortage(None, 10, 4, 5).unwrap().contains("4 B left"));
    }

    fn save(store: &Store, step: u64, contents: &str) -> Manifest {
        let file = FileEntry::of("state.json", contents.as_bytes());
        let manifest = Manifest { format_version: FORMAT_VERSION, step, files: vec![file] };
        store.put(&format!("{}/state.json", folder(step)), contents.as_bytes().to_vec()).unwrap();
        store.put(&format!("{}/{MANIFEST}", folder(step)), serde_json::to_vec(&manifest).unwrap()).unwrap();
        manifest
    }

    #[test]
    fn only_what_the_store_lacks_is_left_over() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name).display().to_string();
        let remote = Store::open(&place("remote")).unwrap();
        let spool = Spool::open(Some(&place("spool")), None, "s3://bucket/run").unwrap();
        for step in [10, 20] {
            save(&remote, step, "there");
        }
        save(spool.store(), 10, "there");
        let newest = save(spool.store(), 20, "there");
        let leftover = save(spool.store(), 30, "here");
        step_folder::mark_unfinished(spool.store(), 40).unwrap();
        spool.store().put("step-00000040/state.json", b"half".to_vec()).unwrap();
        let stock = spool.take_stock(&remote).unwrap();
        assert_eq!(stock.stored, [10, 20]);
        assert_eq!(stock.leftovers, std::slice::from_ref(&leftover));
        assert_eq!(stock.newest, Some(newest));
        spool.keep_only(&stock).unwrap();
        let listed = manifest::listed(spool.store()).unwrap();
        assert_eq!(listed.iter().map(|entry| entry.step).collect::<Vec<_>>(), [20, 30]);
        assert_eq!(spool.count_files(&leftover), 1);
        // A store that went on without this machine: its checkpoints are the run's.
        save(&remote, 20, "other");
        save(&remote, 50, "later");
        let stock = spool.take_stock(&remote).unwrap();
        assert!(stock.leftovers.is_empty() && stock.newest.is_none());
    }

    #[test]
    fn copies_of_what_is_stored_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().display().to_string();
        let spool = Spool::open(Some(&base), Some(600), "s3://bucket/run").unwrap();
        save(spool.store(), 10, &"x".repeat(200));
        save(spool.store(), 20, &"x".repeat(200));
        spool.make_room(100, &[]).unwrap_err();
        spool.make_room(100, &[10]).unwrap();
        let error = spool.make_room(500, &[]).unwrap_err().to_string();
        assert!(error.contains("spool_limit is 600 B"), "{error}");
    }
}
