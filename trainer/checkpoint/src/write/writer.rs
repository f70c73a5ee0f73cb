//! Writing checkpoints while training goes on.
//!
//! `start` hands the rank's tensors to a thread (`snapshot.rs`), and before the next update the loop waits until that
//! has copied them: the only stall. Once the files of every rank are written (the loop learns it from the all-reduce),
//! `commit` collects what they are; another thread (`publish.rs`) then writes state and manifest. In a run whose folder
//! is in a remote store all this happens in a local spool, which a third thread (`upload.rs`) mirrors to the store.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arinar_store::{Store, StoreError};

use super::{
    CheckpointError, State,
    manifest::{FORMAT_VERSION, FileEntry, Manifest, STATE, folder},
    mirror::{Mirror, UploadStatus},
    publish::{Complete, Publisher},
    shard::Tensors,
    snapshot::Snapshot,
    step_folder,
};
use crate::exit::Stop;
use arinar_collective::{Collective, Reduction, agree, gather, machine::memory};

/// Time between two looks at an upload that the end of the run waits for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long training waits for room in the spool while the store takes what is in it.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1800);
/// How long it goes on waiting once the run is to end.
const ROOM_GRACE: Duration = Duration::from_secs(5);
/// Time between two lines about it.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Which part a process has in saving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// Its rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// True on one rank of each machine.
    pub is_node_leader: bool,
    /// Ranks on its machine.
    pub local_world_size: usize,
}

impl Role {
    /// True if all ranks share this machine.
    pub fn alone(&self) -> bool {
        self.local_world_size == self.world
    }
}

/// Saves one run's checkpoints.
pub struct Saver {
    role: Role,
    /// The local folder they are written to.
    store: Arc<Store>,
    publisher: Option<Publisher>,
    pending: Option<Pending>,
    mirror: Option<Mirror>,
    failure: Option<Stop>,
    messages: Vec<String>,
    started_step: Option<u64>,
    saved_step: Option<u64>,
}

/// What a remote store still lacks at the end of a run.
#[derive(Debug)]
pub struct Missing {
    /// In one line, with the cure.
    pub what: String,
    /// The run was asked to end; else its time was up.
    pub interrupted: bool,
}

/// A checkpoint whose files are being written.
struct Pending {
    step: u64,
    state: Vec<u8>,
    snapshot: Snapshot,
}

impl Saver {
    pub(super) fn new(role: Role, store: Arc<Store>, publisher: Option<Publisher>, mirror: Option<Mirror>) -> Self {
        Self {
            role,
            store,
            publisher,
            pending: None,
            mirror,
            failure: None,
            messages: Vec::new(),
            started_step: None,
            saved_step: None,
        }
    }

    /// One for a rehearsal, which never saves.
    ///
    /// # Errors
    /// None but those of the system.
    pub fn idle(role: Role) -> Result<Self, StoreError> {
        // Opening a folder neither reads nor makes anything.
        Ok(Self::new(role, Arc::new(Store::open(".")?), None, None))
    }

    /// One whose checkpoint has its copy of the tensors once `copied` is closed.
    #[cfg(test)]
    pub(crate) fn copying(role: Role, copied: std::sync::mpsc::Receiver<()>) -> Self {
        let mut saver = Self::idle(role).expect("a saver for a test");
        saver.pending = Some(Pending { step: 0, state: Vec::new(), snapshot: Snapshot::copying(copied) });
        saver
    }

    /// True when this rank's files of the pending checkpoint are written, or failed to be.
    pub fn is_written(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.snapshot.is_written())
    }

    /// Starts saving. All ranks call it together, when no checkpoint is pending. The tensors must not change before
    /// [`Saver::wait_until_copied`]. Once `interrupted` on some rank, it does not wait for room for long.
    ///
    /// # Errors
    /// No room, or a failure of the disk.
    pub fn start(
        &mut self,
        collective: &dyn Collective,
        state: &State,
        tensors: &Tensors<'_>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), Stop> {
        let step = state.step;
        self.make_room(collective, step, tensors.bytes(), interrupted)?;
        let state = serde_json::to_vec_pretty(state).map_err(Stop::failure)?;
        // Of all ranks together, which as a rule share the machine.
        let copy = memory::available().is_none_or(|free| tensors.bytes() <= free / 2);
        let path = self.store.local_path(&folder(step)).unwrap_or_default();
        let files = tensors.lay_out(self.role.rank, self.role.world);
        let snapshot = files.and_then(|files| Snapshot::start(path, step, files, copy)).map_err(Stop::from);
        let snapshot = agree(collective, snapshot)?;
        self.pending = Some(Pending { step, state, snapshot });
        self.started_step = Some(step);
        Ok(())
    }

    /// True if the newest checkpoint that was started is of this step: there is nothing more to save of it.
    pub fn has_started(&self, step: u64) -> bool {
        self.started_step == Some(step)
    }

    /// Returns when the tensors that [`Saver::start`] was given may change.
    pub fn wait_until_copied(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.snapshot.wait_until_copied();
        }
    }

    /// On rank 0, the newest checkpoint that this run has made valid.
    pub fn saved_step(&self) -> Option<u64> {
        self.saved_step
    }

    /// Waits for the files of the pending checkpoint, if any; what makes them valid is then written in the background.
    /// All ranks call it together.
    ///
    /// # Errors
    /// When some rank could not write: earlier checkpoints are as they were.
    pub fn commit(&mut self, collective: &dyn Collective) -> Result<(), Stop> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let step = pending.step;
        let written = pending.snapshot.join().map_err(|error| Stop::from(self.explain(error)));
        let complete =
            agree(collective, written).and_then(|entries| self.collect(collective, step, &pending.state, entries));
        let (manifest, own) = match complete {
            Ok(complete) => complete,
            Err(stop) => {
                if self.publisher.is_some() {
                    // Best effort: the space is needed more than the error.
                    let _ = step_folder::delete(&self.store, step);
                }
                return Err(stop);
            }
        };
        let bytes = serde_json::to_vec_pretty(&manifest).map_err(Stop::failure)?;
        if let Some(publisher) = &self.publisher {
            publisher.publish(Complete { step, state: pending.state, manifest: bytes });
        }
        if let Some(mirror) = &mut self.mirror {
            mirror.saved(&manifest, own, self.publisher.as_ref());
        }
        Ok(())
    }

    /// The manifest, the same on every rank, and the files that this rank answers for.
    fn collect(
        &self,
        collective: &dyn Collective,
        step: u64,
        state: &[u8],
        mut own: Vec<FileEntry>,
    ) -> Result<(Manifest, Vec<FileEntry>), Stop> {
        let mine = serde_json::to_vec(&own).map_err(Stop::failure)?;
        let state = FileEntry::of(STATE, state);
        let mut files = vec![state.clone()];
        for entries in gather(collective, &mine)? {
            files.extend(serde_json::from_slice::<Vec<FileEntry>>(&entries).map_err(Stop::failure)?);
        }
        if self.role.rank == 0 {
            own.insert(0, state);
        }
        Ok((Manifest { format_version: FORMAT_VERSION, step, files }, own))
    }

    /// Waits until the next checkpoint fits into the spool, unless the store is out of reach: then it never may.
    fn make_room(
        &mut self,
        collective: &dyn Collective,
        step: u64,
        bytes: u64,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), Stop> {
        let began = Instant::now();
        let mut messages = Vec::new();
        loop {
            messages.extend(self.poll());
            let room = self.room_for(step, bytes);
            let ends = interrupted() && began.elapsed() >= ROOM_GRACE;
            let out_of_patience = ends
                || self.role.rank == 0
                    && (began.elapsed() >= ROOM_TIMEOUT || self.mirror.as_ref().is_none_or(Mirror::is_stuck));
            let hopeless = match &room {
                Err(CheckpointError::NoRoom { .. }) => out_of_patience,
                other => other.is_err(),
            };
            let short = room.is_err();
            let mut flags = [short, hopeless || (short && self.failure.is_some()), self.is_uploaded(), out_of_patience]
                .map(|flag| f64::from(u8::from(flag)));
            collective.all_reduce_scalars(&mut flags, Reduction::Max)?;
            let [short, hopeless, uploaded, out_of_patience] = flags.map(|flag| flag > 0.0);
            if !short || hopeless || out_of_patience {
                messages.append(&mut self.messages);
                self.messages = messages;
                return agree(collective, room.map_err(Stop::from));
            }
            if uploaded {
                self.uploaded();
            } else {
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }

    /// An old checkpoint of this step must not vouch for the new files, and a spool must have room for them.
    fn room_for(&mut self, step: u64, bytes: u64) -> Result<(), CheckpointError> {
        let Some(publisher) = &self.publisher else { return Ok(()) };
        let path = self.store.local_path(&folder(step)).unwrap_or_default();
        if path.exists() {
            // What the publisher was ordered to do there comes first.
            let published = publisher.wait();
            step_folder::clear(&self.store, step)?;
            self.hear(published);
        }
        self.spool_room_for(bytes / self.role.world as u64 * self.role.local_world_size as u64)?;
        Ok(step_folder::mark_unfinished(&self.store, step)?)
    }

    fn spool_room_for(&mut self, here: u64) -> Result<(), CheckpointError> {
        let (Some(publisher), Some(mirror)) = (&self.publisher, &mut self.mirror) else { return Ok(()) };
        if mirror.make_room(here).is_ok() {
            return Ok(());
        }
        // Deletions that are on their way may be all it takes.
        let published = publisher.wait();
        let room = mirror.make_room(here);
        self.hear(published);
        room
    }

    /// A full disk under the spool has more to tell than a full disk.
    fn explain(&self, error: CheckpointError) -> CheckpointError {
        match (&self.mirror, error) {
            (Some(mirror), CheckpointError::Store(StoreError::Full { url, source })) => {
                mirror.no_room(format!("the disk of {url} is full ({source})"))
            }
            (_, error) => error,
        }
    }

    /// Rank 0 alone knows: the checkpoint being uploaded is valid in the store.
    pub fn is_uploaded(&self) -> bool {
        self.mirror.as_ref().is_some_and(Mirror::is_uploaded)
    }

    /// All ranks have heard that [`Saver::is_uploaded`]; the next checkpoint's turn has come.
    pub fn uploaded(&mut self) {
        let Some(mirror) = &mut self.mirror else { return };
        if let Some(step) = mirror.uploaded(self.publisher.as_ref()) {
            self.messages.push(format!("uploaded {} to {}", folder(step), mirror.url()));
        }
    }

    /// Hears what the threads have done. Returns what there is to tell.
    pub fn poll(&mut self) -> Vec<String> {
        let published = self.publisher.as_ref().map(Publisher::poll).unwrap_or_default();
        self.hear(published);
        if let Some(mirror) = &mut self.mirror {
            self.messages.extend(mirror.poll());
            if let Some(error) = mirror.failure() {
                self.failure.get_or_insert(error.into());
            }
        }
        std::mem::take(&mut self.messages)
    }

    fn hear(&mut self, published: Vec<Result<u64, CheckpointError>>) {
        for result in published {
            match result {
                Ok(step) => {
                    self.saved_step = Some(step);
                    self.messages.push(format!("saved {}", folder(step)));
                    if let Some(mirror) = &mut self.mirror {
                        mirror.published(step);
                    }
                }
                Err(error) => {
                    let stop = Stop::from(self.explain(error));
                    self.failure.get_or_insert(stop);
                }
            }
        }
    }

    /// Why saving cannot go on, if so; told once.
    pub fn failure(&mut self) -> Option<Stop> {
        self.failure.take()
    }

    /// For the curves of a run in a remote store.
    pub fn upload_status(&self) -> Option<UploadStatus> {
        self.mirror.as_ref().map(Mirror::status)
    }

    /// Waits until every saved checkpoint is where it belongs, a remote store for at most `timeout` and until some rank
    /// is `interrupted`. All ranks call it together. Returns what is missing, if anything.
    ///
    /// # Errors
    /// When a checkpoint could not be written.
    pub fn finish(
        &mut self,
        collective: &dyn Collective,
        timeout: Duration,
        interrupted: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Option<Missing>, Stop> {
        if let Some(mirror) = &self.mirror {
            mirror.hurry();
        }
        let published = self.publisher.as_ref().map(Publisher::wait).unwrap_or_default();
        self.hear(published);
        let began = Instant::now();
        let mut told = began;
        loop {
            self.poll().iter().for_each(|message| tell(message));
            let expired = self.role.rank == 0 && began.elapsed() >= timeout;
            let mut flags = [self.failure.is_some(), self.is_uploaded(), expired, interrupted()]
                .map(|flag| f64::from(u8::from(flag)));
            collective.all_reduce_scalars(&mut flags, Reduction::Max)?;
            let [failed, uploaded, expired, interrupted] = flags.map(|flag| flag > 0.0);
            if failed {
                agree(collective, self.failure.take().map_or(Ok(()), Err))?;
            }
            if uploaded {
                self.uploaded();
            }
            let Some(mirror) = self.mirror.as_ref().filter(|mirror| !mirror.is_empty()) else {
                self.poll().iter().for_each(|message| tell(message));
                return Ok(None);
            };
            let (url, backlog) = (mirror.url(), mirror.tell_backlog());
            if expired || interrupted {
                let when = match interrupted {
                    true => "when a signal came".to_owned(),
                    false => format!("after {} (checkpoint.upload_timeout)", humantime::format_duration(timeout)),
                };
                let what =
                    format!("not everything is in {url} {when}: {backlog}; start again on this machine to send it on");
                return Ok(Some(Missing { what, interrupted }));
            }
            if told == began || told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tell(&format!("uploading to {url}: {backlog}"));
            }
            if !uploaded {
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
}
