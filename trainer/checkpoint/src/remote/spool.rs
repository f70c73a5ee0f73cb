//! The spool: the local folder in which the checkpoints of a remote run wait for upload.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arinar_store::Store;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    error::{CheckpointError, disk_error},
    format::{
        manifest::{self, Manifest, committed_steps, step_folder_name},
        step_folder,
    },
};

/// Name of the folder that holds downloaded checkpoints until they are restored.
const DOWNLOADS: &str = "fetched";

/// The spool of a run on this node, shared by the ranks of the node.
#[derive(Clone)]
pub(crate) struct Spool {
    store: Arc<Store>,
    path: PathBuf,
    limit: Option<u64>,
}

/// The checkpoints in the store of a run and in the spool when the run starts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SpoolInventory {
    /// Steps of the checkpoints in the store, in ascending order.
    pub stored: Vec<u64>,
    /// Complete checkpoints in the spool that are newer than those in the store.
    pub not_uploaded: Vec<Manifest>,
    /// The newest checkpoint in the store, if the spool holds it, too.
    pub newest: Option<Manifest>,
}

/// Returns the folder of the spool of the run at `run`: a subfolder of `base` (`checkpoint.spool_dir`) or of the user's cache
/// folder.
///
/// # Errors
/// Returns [`CheckpointError::NoCacheFolder`] if `base` is `None` and the user's cache folder is unknown.
pub fn spool_folder(base: Option<&str>, run: &str) -> Result<PathBuf, CheckpointError> {
    let base = match base {
        Some(base) => PathBuf::from(base),
        None => cache_folder()?.join("arinar/spool"),
    };
    Ok(base.join(format!("{:016x}", xxh3_64(run.trim_end_matches('/').as_bytes()))))
}

impl Spool {
    /// Opens the spool of the run at `run`, see [`spool_folder`]. It may hold `limit` bytes.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be created.
    pub(crate) fn open(base: Option<&str>, limit: Option<u64>, run: &str) -> Result<Self, CheckpointError> {
        let path = spool_folder(base, run)?;
        std::fs::create_dir_all(&path).map_err(|error| disk_error(&path, error))?;
        let store = Arc::new(Store::open(&path.display().to_string())?);
        Ok(Self { store, path, limit })
    }

    /// Returns the folder as a store.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Returns the path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder for downloaded checkpoints.
    ///
    /// # Errors
    /// Returns an error if it cannot be opened.
    pub(crate) fn downloads(&self) -> Result<Store, CheckpointError> {
        Ok(Store::open(&self.path.join(DOWNLOADS).display().to_string())?)
    }

    /// Deletes downloaded checkpoints.
    ///
    /// # Errors
    /// Returns an error if a file cannot be deleted.
    pub(crate) fn delete_downloads(&self) -> Result<(), CheckpointError> {
        let path = self.path.join(DOWNLOADS);
        let downloads = self.downloads()?;
        for entry in manifest::list_steps(&downloads)? {
            step_folder::delete(&downloads, entry.step)?;
        }
        match std::fs::remove_dir(&path) {
            Ok(()) => Ok(()),
            // Nothing was downloaded, or the folder holds other files.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
            Err(error) => Err(disk_error(&path, error).into()),
        }
    }

    /// Lists the checkpoints in the remote store of the run and in the spool.
    ///
    /// # Errors
    /// Returns an error if one of them cannot be listed.
    pub(crate) fn inventory(&self, remote: &Store) -> Result<SpoolInventory, CheckpointError> {
        let stored = committed_steps(remote)?;
        let mut inventory = SpoolInventory { stored, ..SpoolInventory::default() };
        for step in committed_steps(&self.store)? {
            // A folder whose manifest cannot be parsed is not a checkpoint.
            let Ok(manifest) = manifest::read(&self.store, step) else { continue };
            match inventory.stored.last() {
                Some(&newest) if step < newest => {}
                Some(&newest) if step == newest => {
                    let same = manifest::read(remote, step).is_ok_and(|theirs| theirs == manifest);
                    inventory.newest = same.then_some(manifest);
                }
                _ => inventory.not_uploaded.push(manifest),
            }
        }
        Ok(inventory)
    }

    /// Deletes all checkpoints except those in the inventory. Downloaded checkpoints are kept.
    ///
    /// # Errors
    /// Returns an error if a file cannot be deleted.
    pub(crate) fn retain(&self, inventory: &SpoolInventory) -> Result<(), CheckpointError> {
        for entry in manifest::list_steps(&self.store)? {
            let kept = inventory.not_uploaded.iter().chain(&inventory.newest).find(|kept| kept.step == entry.step);
            let ours = || manifest::read(&self.store, entry.step).ok();
            if kept.is_none() || kept != ours().as_ref() {
                step_folder::delete(&self.store, entry.step)?;
            }
        }
        Ok(())
    }

    /// Returns how many files of a checkpoint are in the spool with the right length.
    pub(crate) fn count_files(&self, manifest: &Manifest) -> usize {
        let folder = self.path.join(step_folder_name(manifest.step));
        let here = |name: &str, bytes| std::fs::metadata(folder.join(name)).is_ok_and(|file| file.len() == bytes);
        manifest.files.iter().filter(|entry| here(&entry.name, entry.bytes)).count()
    }

    /// Makes room for `need` bytes. If necessary, deletes checkpoints that are already uploaded (`uploaded`).
    ///
    /// # Errors
    /// Returns [`CheckpointError::SpoolFull`] if there is no room, or an error of the disk.
    pub(crate) fn make_room(&self, need: u64, uploaded: &[u64]) -> Result<(), CheckpointError> {
        let mut uploaded = uploaded.iter();
        while let Some(what) = shortage(self.limit, self.used()?, self.free()?, need) {
            match uploaded.next() {
                Some(&step) => step_folder::delete(&self.store, step)?,
                None => return Err(CheckpointError::SpoolFull { path: self.path.clone(), what }),
            }
        }
        Ok(())
    }

    fn used(&self) -> Result<u64, CheckpointError> {
        Ok(self.store.list("")?.iter().map(|object| object.bytes).sum())
    }

    /// Returns the free space of the disk in bytes.
    fn free(&self) -> Result<u64, CheckpointError> {
        let disk = rustix::fs::statvfs(&self.path).map_err(|error| disk_error(&self.path, error.into()))?;
        Ok(disk.f_bavail * disk.f_frsize)
    }
}

/// Returns the limit that `need` more bytes would exceed, for the user.
fn shortage(limit: Option<u64>, used: u64, free: u64, need: u64) -> Option<String> {
    let size = indicatif::DecimalBytes;
    if let Some(limit) = limit.filter(|limit| used + need > *limit) {
        let (limit, used, need) = (size(limit), size(used), size(need));
        return Some(format!("checkpoint.spool_limit is {limit}, {used} are used and {need} needed"));
    }
    (need > free).then(|| format!("its disk has {} left and {} are needed", size(free), size(need)))
}

/// Returns the user's cache folder.
fn cache_folder() -> Result<PathBuf, CheckpointError> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache"))).ok_or(CheckpointError::NoCacheFolder)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::format::manifest::{FORMAT_VERSION, FileEntry, MANIFEST};

    #[test]
    fn a_shortage_names_the_limit() {
        assert_eq!(shortage(None, 10, 5, 5), None);
        assert_eq!(shortage(Some(15), 10, 5, 5), None);
        assert!(shortage(Some(14), 10, 5, 5).unwrap().contains("spool_limit is 14 B"));
        assert!(shortage(None, 10, 4, 5).unwrap().contains("4 B left"));
    }

    fn save(store: &Store, step: u64, contents: &str) -> Manifest {
        let file = FileEntry::of("state.json", contents.as_bytes());
        let manifest = Manifest { format_version: FORMAT_VERSION, step, files: vec![file] };
        store.put(&format!("{}/state.json", step_folder_name(step)), contents.as_bytes().to_vec()).unwrap();
        store.put(&format!("{}/{MANIFEST}", step_folder_name(step)), serde_json::to_vec(&manifest).unwrap()).unwrap();
        manifest
    }

    #[test]
    fn only_checkpoints_that_the_store_lacks_are_not_uploaded() {
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
        let inventory = spool.inventory(&remote).unwrap();
        assert_eq!(inventory.stored, [10, 20]);
        assert_eq!(inventory.not_uploaded, std::slice::from_ref(&leftover));
        assert_eq!(inventory.newest, Some(newest));
        spool.retain(&inventory).unwrap();
        let listed = manifest::list_steps(spool.store()).unwrap();
        assert_eq!(listed.iter().map(|entry| entry.step).collect::<Vec<_>>(), [20, 30]);
        assert_eq!(spool.count_files(&leftover), 1);
        // The run was continued on another machine: its checkpoints in the store take precedence.
        save(&remote, 20, "other");
        save(&remote, 50, "later");
        let inventory = spool.inventory(&remote).unwrap();
        assert!(inventory.not_uploaded.is_empty() && inventory.newest.is_none());
    }

    #[test]
    fn uploaded_checkpoints_make_room() {
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
