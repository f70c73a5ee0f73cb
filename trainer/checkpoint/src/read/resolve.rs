//! Finding the newest whole checkpoint, in the run's store and in the spool of this machine.

use std::fs::File;

use arinar_store::{Store, StoreError};
use xxhash_rust::xxh3::Xxh3;

use super::{
    CheckpointError, FileEntry,
    manifest::{self, MANIFEST, Manifest, folder, step_of},
    snapshot::disk_error,
    spool::{Spool, Stock},
    step_folder,
};
use crate::config::Resume;

/// A whole checkpoint to go on from.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Found {
    /// URL of the run it belongs to.
    pub run: String,
    /// Its step.
    pub step: u64,
    /// Where its files are read.
    pub place: Place,
    /// What was wrong with newer ones, for the user.
    pub warnings: Vec<String>,
}

/// Where the files of a checkpoint lie; always a local folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Place {
    /// In the run itself.
    Run,
    /// In the spool, as it was saved there.
    Spool,
    /// In the spool, downloaded from the run.
    Fetched,
}

/// Where to look.
pub(super) struct Search<'a> {
    /// URL of the run.
    pub run: &'a str,
    /// Where to download to.
    pub spool: Option<&'a Spool>,
    /// What of the run lies there and in its store, where that is remote.
    pub stock: Option<&'a Stock>,
}

impl Search<'_> {
    /// The checkpoint `resume` asks for, or `None` to begin anew. Every file is read and verified.
    ///
    /// # Errors
    /// A run that must not be overwritten, a place without checkpoint, none that is whole, or a store failure.
    pub fn find(&self, resume: &Resume) -> Result<Option<Found>, CheckpointError> {
        match resume {
            Resume::Auto => self.newest(self.run, self.committed()?),
            Resume::None => self.refuse_existing().map(|()| None),
            Resume::From(place) => {
                let (run, steps) = steps_at(place)?;
                let ours = run == self.run.trim_end_matches('/');
                let stock = self.stock.filter(|_| ours);
                let found = Search { run: &run, spool: self.spool, stock }.newest(&run, steps)?;
                found.map(Some).ok_or_else(|| CheckpointError::NoCheckpoint { url: place.clone() })
            }
        }
    }

    fn refuse_existing(&self) -> Result<(), CheckpointError> {
        match self.committed()?.last() {
            None => Ok(()),
            Some(&newest) => Err(CheckpointError::RunExists { url: self.run.to_owned(), newest: folder(newest) }),
        }
    }

    /// Steps in the run and in its spool, ascending.
    fn committed(&self) -> Result<Vec<u64>, CheckpointError> {
        let Some(stock) = self.stock else { return committed(&Store::open(self.run)?) };
        let leftovers = stock.leftovers.iter().map(|manifest| manifest.step);
        Ok(stock.stored.iter().copied().chain(leftovers).collect())
    }

    fn newest(&self, run: &str, steps: Vec<u64>) -> Result<Option<Found>, CheckpointError> {
        let store = Store::open(run)?;
        let mut warnings = Vec::new();
        for step in steps.into_iter().rev() {
            for place in self.places(&store, step) {
                match self.bring(&store, step, place) {
                    Ok(()) => return Ok(Some(Found { run: run.to_owned(), step, place, warnings })),
                    Err(problem) if is_damage(&problem) => warnings.push(problem.to_string()),
                    Err(problem) => return Err(problem),
                }
            }
        }
        if warnings.is_empty() {
            return Ok(None);
        }
        Err(CheckpointError::NoneWhole { url: run.to_owned(), problems: warnings.join("; ") })
    }

    /// Where a checkpoint can be read, the cheapest first.
    fn places(&self, store: &Store, step: u64) -> Vec<Place> {
        if store.is_local() {
            return vec![Place::Run];
        }
        let is_it = |manifest: &Manifest| manifest.step == step;
        if self.stock.is_some_and(|stock| stock.leftovers.iter().any(is_it)) {
            return vec![Place::Spool];
        }
        if self.stock.is_some_and(|stock| stock.newest.iter().any(is_it)) {
            return vec![Place::Spool, Place::Fetched];
        }
        vec![Place::Fetched]
    }

    /// Makes sure that a checkpoint lies whole in its place.
    fn bring(&self, store: &Store, step: u64, place: Place) -> Result<(), CheckpointError> {
        match (place, self.spool) {
            (Place::Spool, Some(spool)) => manifest::verify(spool.store(), step).map(drop),
            (Place::Fetched, Some(spool)) => fetch(store, step, spool),
            _ => manifest::verify(store, step).map(drop),
        }
    }
}

/// The run that a URL names and its committed steps, ascending; or the one step that the URL names.
pub(super) fn steps_at(place: &str) -> Result<(String, Vec<u64>), CheckpointError> {
    let place = place.trim_end_matches('/');
    let (run, name) = place.rsplit_once('/').unwrap_or((".", place));
    let Some(step) = step_of(name) else { return Ok((place.to_owned(), committed(&Store::open(place)?)?)) };
    if Store::open(run)?.exists(&format!("{name}/{MANIFEST}"))? {
        return Ok((run.to_owned(), vec![step]));
    }
    Err(CheckpointError::NoCheckpoint { url: place.to_owned() })
}

pub(super) fn committed(store: &Store) -> Result<Vec<u64>, CheckpointError> {
    let listed = manifest::listed(store)?;
    Ok(listed.into_iter().filter(|entry| entry.committed).map(|entry| entry.step).collect())
}

/// True if an older checkpoint may be whole where this one is not. A store out of reach says nothing about it.
pub(super) fn is_damage(problem: &CheckpointError) -> bool {
    use CheckpointError::{Damaged, Store};
    use StoreError::{File, Missing, Size};
    matches!(problem, Damaged { .. } | Store(Missing { .. } | Size { .. } | File { .. }))
}

/// Downloads a checkpoint into the spool's folder for such, and verifies it.
///
/// # Errors
/// [`CheckpointError::Damaged`] with the URL of the file, or what store and disk say.
pub(super) fn fetch(store: &Store, step: u64, spool: &Spool) -> Result<(), CheckpointError> {
    spool.forget_fetched()?;
    let into = spool.fetched()?;
    let manifest = manifest::read(store, step)?;
    let folder = folder(step);
    step_folder::mark_unfinished(&into, step)?;
    for entry in &manifest.files {
        let name = format!("{folder}/{}", entry.name);
        // A manifest from outside must not name a place elsewhere.
        let plain = !entry.name.is_empty() && !entry.name.contains(['/', '\\']) && !entry.name.starts_with('.');
        let path = into.local_path(&name).filter(|_| plain);
        let Some(path) = path else {
            let what = format!("it names the file {:?}", entry.name);
            return Err(CheckpointError::Damaged { url: store.url_of(&format!("{folder}/{MANIFEST}")), what });
        };
        let failed = |error| disk_error(&path, error);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let file = File::create_new(&path).map_err(failed)?;
        store.download(&name, entry.bytes, &file)?;
        drop(file);
        let found = hash_file(entry, &path)?;
        entry.compare(&found, &store.url_of(&name))?;
    }
    write_manifest(&into, &manifest)
}

fn hash_file(entry: &FileEntry, path: &std::path::Path) -> Result<FileEntry, CheckpointError> {
    let mut hash = Hashing { hash: Xxh3::new(), bytes: 0 };
    let copied = File::open(path).and_then(|mut file| std::io::copy(&mut file, &mut hash));
    copied.map_err(|error| disk_error(path, error))?;
    let xxh3_128 = format!("{:032x}", hash.hash.digest128());
    Ok(FileEntry { name: entry.name.clone(), bytes: hash.bytes, xxh3_128 })
}

struct Hashing {
    hash: Xxh3,
    bytes: u64,
}

impl std::io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_manifest(store: &Store, manifest: &Manifest) -> Result<(), CheckpointError> {
    let name = format!("{}/{MANIFEST}", folder(manifest.step));
    let bytes = serde_json::to_vec_pretty(manifest);
    let bytes = bytes.map_err(|source| StoreError::Other { url: store.url_of(&name), source: source.into() })?;
    Ok(store.put(&name, bytes)?)
}
