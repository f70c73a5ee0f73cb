//! Writing a checkpoint while training goes on.
//!
//! `start` copies the rank's tensors to files in memory, which is the only stall, and a thread
//! writes them to the store. Once every rank's files are there (the loop learns it from the
//! all-reduce), `commit` writes state and manifest, and only then deletes what is superseded.

use std::{sync::Arc, thread::JoinHandle};

use arinar_data::store::{Store, StoreError};
use bytes::Bytes;

use super::{
    CheckpointError, State,
    manifest::{self, FORMAT_VERSION, FileEntry, MANIFEST, Manifest, STATE, folder},
    retention::Retention,
    shard::{self, KINDS, Tensors},
};
use crate::{
    clip,
    collective::{Collective, agree, gather},
    exit::Stop,
    memory,
};

/// The files of one rank: their entries for the manifest.
type Written = Result<Vec<FileEntry>, CheckpointError>;

/// Saves one run's checkpoints.
pub struct Saver {
    store: Arc<Store>,
    retention: Retention,
    pending: Option<Pending>,
}

/// A checkpoint that is not committed yet.
struct Pending {
    step: u64,
    state: Vec<u8>,
    work: Work,
}

enum Work {
    Running(JoinHandle<Written>),
    Done(Written),
}

impl Saver {
    /// Saves into the run `store`.
    pub fn new(store: Arc<Store>, retention: Retention) -> Self {
        Self { store, retention, pending: None }
    }

    /// True when this rank's files of the pending checkpoint are written, or failed to be.
    pub fn is_written(&self) -> bool {
        match self.pending.as_ref().map(|pending| &pending.work) {
            Some(Work::Running(thread)) => thread.is_finished(),
            Some(Work::Done(_)) => true,
            None => false,
        }
    }

    /// Starts saving. All ranks call it together, when no checkpoint is pending.
    ///
    /// # Errors
    /// Weights that are not finite, or a failure of the store.
    pub fn start(&mut self, collective: &dyn Collective, state: &State, tensors: &Tensors<'_>) -> Result<(), Stop> {
        let step = state.step;
        if !clip::grad_norm(tensors.parameters.values()).is_finite() {
            return Err(CheckpointError::NotFinite { step }.into());
        }
        let prepared = if collective.rank() == 0 { self.make_room(step) } else { Ok(()) };
        agree(collective, prepared.map_err(Stop::from))?;
        let state = serde_json::to_vec_pretty(state).map_err(Stop::failure)?;
        let work = self.write(collective, step, tensors);
        self.pending = Some(Pending { step, state, work });
        Ok(())
    }

    /// Waits for the pending checkpoint, if any, and makes it valid. All ranks call it together.
    /// Returns its step.
    ///
    /// # Errors
    /// When some rank could not write: earlier checkpoints are as they were.
    pub fn commit(&mut self, collective: &dyn Collective) -> Result<Option<u64>, Stop> {
        let Some(pending) = self.pending.take() else { return Ok(None) };
        let step = pending.step;
        let written = match pending.work {
            Work::Done(written) => written,
            Work::Running(thread) => thread.join().unwrap_or(Err(CheckpointError::Thread { step })),
        };
        let result = agree(collective, written.map_err(Stop::from))
            .and_then(|entries| self.publish(collective, step, &pending.state, &entries));
        if result.is_err() && collective.rank() == 0 {
            // Best effort: the space is needed more than the error.
            let _ = self.delete(step);
        }
        result.map(|()| Some(step))
    }

    /// An old manifest at this step must not vouch for the new files.
    fn make_room(&self, step: u64) -> Result<(), CheckpointError> {
        let manifest = format!("{}/{MANIFEST}", folder(step));
        if self.store.exists(&manifest)? {
            self.store.delete(&manifest)?;
        }
        Ok(())
    }

    /// In the background where memory holds the copies of all files, else one by one right now.
    fn write(&self, collective: &dyn Collective, step: u64, tensors: &Tensors<'_>) -> Work {
        let (rank, world) = (collective.rank(), collective.world());
        // Of all ranks together, which as a rule share the machine.
        let all = 4 * size_of::<f32>() as u64 * tensors.parameters.len() as u64;
        let serialize = |kind: &str| {
            let file = shard::file_name(kind, rank, world);
            match tensors.serialize(kind, rank) {
                Ok(contents) => Ok((file, contents)),
                Err(source) => Err(CheckpointError::Layout { file, source }),
            }
        };
        let store = Arc::clone(&self.store);
        if memory::available().is_some_and(|free| all > free / 2) {
            let put = |kind: &&str| serialize(kind).and_then(|file| put_file(&store, step, file));
            return Work::Done(KINDS.iter().map(put).collect());
        }
        let files: Result<Vec<_>, _> = KINDS.iter().map(|kind| serialize(kind)).collect();
        match files {
            Err(error) => Work::Done(Err(error)),
            Ok(files) => Work::Running(std::thread::spawn(move || {
                files.into_iter().map(|file| put_file(&store, step, file)).collect()
            })),
        }
    }

    /// Rank 0 writes state and manifest, then deletes what they supersede.
    fn publish(&self, collective: &dyn Collective, step: u64, state: &[u8], entries: &[FileEntry]) -> Result<(), Stop> {
        let mine = serde_json::to_vec(entries).map_err(Stop::failure)?;
        let of_ranks = gather(collective, &mine)?;
        let result = if collective.rank() == 0 {
            self.write_manifest(step, state, &of_ranks).and_then(|()| self.clean_up(step))
        } else {
            Ok(())
        };
        agree(collective, result)
    }

    fn write_manifest(&self, step: u64, state: &[u8], of_ranks: &[Vec<u8>]) -> Result<(), Stop> {
        let mut files = vec![FileEntry::of(STATE, state)];
        for entries in of_ranks {
            let entries: Vec<FileEntry> = serde_json::from_slice(entries).map_err(Stop::failure)?;
            files.extend(entries);
        }
        let manifest = Manifest { format_version: FORMAT_VERSION, step, files };
        let manifest = serde_json::to_vec_pretty(&manifest).map_err(Stop::failure)?;
        let put =
            |name: &str, contents: Vec<u8>| self.store.put(&format!("{}/{name}", folder(step)), Bytes::from(contents));
        put(STATE, state.to_vec())
            .and_then(|()| put(MANIFEST, manifest))
            .map_err(|error| CheckpointError::from(error).into())
    }

    /// Deletes superseded checkpoints and what killed runs left of unfinished ones.
    fn clean_up(&self, step: u64) -> Result<(), Stop> {
        let listed = manifest::listed(&self.store).map_err(Stop::from)?;
        let committed: Vec<u64> = listed.iter().filter(|entry| entry.committed).map(|entry| entry.step).collect();
        let unfinished = listed.iter().filter(|entry| !entry.committed && entry.step < step).map(|entry| entry.step);
        for old in self.retention.superseded(&committed).into_iter().chain(unfinished) {
            self.delete(old).map_err(|error| Stop::from(CheckpointError::from(error)))?;
        }
        Ok(())
    }

    /// The manifest goes first, so that a checkpoint is whole or none.
    fn delete(&self, step: u64) -> Result<(), StoreError> {
        let folder = folder(step);
        let manifest = format!("{folder}/{MANIFEST}");
        if self.store.exists(&manifest)? {
            self.store.delete(&manifest)?;
        }
        for object in self.store.list(&folder)? {
            self.store.delete(&object.name)?;
        }
        Ok(())
    }
}

fn put_file(store: &Store, step: u64, (name, contents): (String, Vec<u8>)) -> Result<FileEntry, CheckpointError> {
    let entry = FileEntry::of(&name, &contents);
    store.put(&format!("{}/{name}", folder(step)), Bytes::from(contents))?;
    Ok(entry)
}
