//! The writer: saves the checkpoints of a run while training continues.
//!
//! [`Writer::start`] passes the tensors of the rank to a thread (`snapshot.rs`). Before the next optimizer step, the loop waits
//! until they are copied, which is the only stall. Once the files of all ranks are written, [`Writer::commit`] collects
//! their entries, and another thread (`publisher.rs`) writes the state and the manifest. If the run is in a remote store, all
//! this happens in a local spool, which the upload queue uploads from a third thread.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arinar_collective::{Collective, LaunchEnvironment, Reduction, agree, gather, machine::memory};
use arinar_store::{Store, StoreError};
use serde::Serialize;

use super::{
    publisher::{Publisher, WrittenCheckpoint},
    snapshot::Snapshot,
};
use crate::{
    error::CheckpointError,
    flags::CheckpointFlags,
    format::{
        manifest::{FORMAT_VERSION, FileEntry, Manifest, STATE, step_folder_name},
        step_folder,
    },
    layout::TensorSet,
    remote::{outage::UploadStatus, upload_queue::UploadQueue},
    state::CheckpointState,
};

/// Time between two polls while the end of a run waits for an upload.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long training waits for room in the spool while uploads make progress.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1800);
/// How long it waits for room once the run is to end.
const ROOM_GRACE: Duration = Duration::from_secs(5);
/// Time between two messages about an upload that the end of a run waits for.
const MESSAGE_INTERVAL: Duration = Duration::from_secs(10);

/// Saves the checkpoints of one run.
pub(crate) struct Writer {
    launch: LaunchEnvironment,
    /// The local folder to which checkpoints are written.
    store: Arc<Store>,
    publisher: Option<Publisher>,
    pending: Option<PendingCheckpoint>,
    uploads: Option<UploadQueue>,
    failure: Option<CheckpointError>,
    messages: Vec<String>,
    started_step: Option<u64>,
    saved_step: Option<u64>,
}

/// Checkpoints that are not uploaded when a run ends.
#[derive(Debug)]
pub struct MissingUploads {
    /// A description in one line, with the fix.
    pub what: String,
    /// True if waiting was interrupted; false if the timeout has passed.
    pub interrupted: bool,
}

/// A checkpoint whose files are being written.
struct PendingCheckpoint {
    step: u64,
    state: Vec<u8>,
    snapshot: Snapshot,
}

impl Writer {
    pub(crate) fn new(
        launch: LaunchEnvironment,
        store: Arc<Store>,
        publisher: Option<Publisher>,
        uploads: Option<UploadQueue>,
    ) -> Self {
        Self {
            launch,
            store,
            publisher,
            pending: None,
            uploads,
            failure: None,
            messages: Vec::new(),
            started_step: None,
            saved_step: None,
        }
    }

    /// Makes the writer behave as if it copied the tensors of a checkpoint until `copied` is closed.
    pub(crate) fn pretend_to_copy(&mut self, copied: std::sync::mpsc::Receiver<()>) {
        self.pending = Some(PendingCheckpoint { step: 0, state: Vec::new(), snapshot: Snapshot::until_closed(copied) });
    }

    /// Returns the progress of saving on this rank.
    pub(crate) fn flags(&self) -> CheckpointFlags {
        let written = self.pending.as_ref().is_some_and(|pending| pending.snapshot.is_written());
        CheckpointFlags { written, uploaded: self.is_uploaded() }
    }

    /// Starts saving a checkpoint. All ranks call it together, when no checkpoint is pending. The tensors must not change
    /// before [`Writer::wait_until_copied`] returns. Once `interrupted` returns true on some rank, it soon stops waiting for
    /// room.
    ///
    /// # Errors
    /// Returns an error on all ranks if there is no room, or if the disk fails.
    pub(crate) fn start<C: Serialize>(
        &mut self,
        collective: &dyn Collective,
        state: &CheckpointState<C>,
        tensors: &TensorSet<'_>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), CheckpointError> {
        let step = state.step;
        self.make_room(collective, step, tensors.bytes(), interrupted)?;
        let state = serde_json::to_vec_pretty(state)?;
        // Compared with the size on all ranks together, because they usually share the machine.
        let copy = memory::available().is_none_or(|free| tensors.bytes() <= free / 2);
        let path = self.store.local_path(&step_folder_name(step)).unwrap_or_default();
        let files = tensors.lay_out(self.launch.rank, self.launch.world_size);
        let snapshot = files.and_then(|files| Snapshot::start(path, step, files, copy));
        let snapshot = agree(collective, snapshot)?;
        self.pending = Some(PendingCheckpoint { step, state, snapshot });
        self.started_step = Some(step);
        Ok(())
    }

    /// Returns true if the newest checkpoint that was started is that of this step.
    pub(crate) fn has_started(&self, step: u64) -> bool {
        self.started_step == Some(step)
    }

    /// Waits until the tensors that were passed to [`Writer::start`] may change.
    pub(crate) fn wait_until_copied(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.snapshot.wait_until_copied();
        }
    }

    /// Returns the newest checkpoint that this start of the run has made valid. Only rank 0 knows.
    pub(crate) fn saved_step(&self) -> Option<u64> {
        self.saved_step
    }

    /// Waits until the files of the pending checkpoint are written, if there is one, and lets it be published in the
    /// background. All ranks call it together.
    ///
    /// # Errors
    /// Returns an error on all ranks if some rank could not write its files. Earlier checkpoints are unaffected.
    pub(crate) fn commit(&mut self, collective: &dyn Collective) -> Result<(), CheckpointError> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let step = pending.step;
        let written = pending.snapshot.join().map_err(|error| self.explain(error));
        let collected =
            agree(collective, written).and_then(|entries| self.collect(collective, step, &pending.state, entries));
        let (manifest, own) = match collected {
            Ok(collected) => collected,
            Err(error) => {
                if self.publisher.is_some() {
                    // The error to report is the first one; the files are deleted if possible.
                    let _ = step_folder::delete(&self.store, step);
                }
                return Err(error);
            }
        };
        let bytes = serde_json::to_vec_pretty(&manifest)?;
        if let Some(publisher) = &self.publisher {
            publisher.publish(WrittenCheckpoint { step, state: pending.state, manifest: bytes });
        }
        if let Some(uploads) = &mut self.uploads {
            uploads.add(&manifest, own, self.publisher.as_ref());
        }
        Ok(())
    }

    /// Returns the manifest, which is the same on all ranks, and the files that this rank has written.
    fn collect(
        &self,
        collective: &dyn Collective,
        step: u64,
        state: &[u8],
        mut own: Vec<FileEntry>,
    ) -> Result<(Manifest, Vec<FileEntry>), CheckpointError> {
        let mine = serde_json::to_vec(&own)?;
        let state = FileEntry::of(STATE, state);
        let mut files = vec![state.clone()];
        for entries in gather(collective, &mine)? {
            files.extend(serde_json::from_slice::<Vec<FileEntry>>(&entries)?);
        }
        if self.launch.rank == 0 {
            own.insert(0, state);
        }
        Ok((Manifest { format_version: FORMAT_VERSION, step, files }, own))
    }

    /// Waits until the next checkpoint fits into the spool, unless the store cannot be reached, because then it may never fit.
    fn make_room(
        &mut self,
        collective: &dyn Collective,
        step: u64,
        bytes: u64,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), CheckpointError> {
        let began = Instant::now();
        let mut messages = Vec::new();
        loop {
            messages.extend(self.poll());
            let room = self.room_for(step, bytes);
            let ends = interrupted() && began.elapsed() >= ROOM_GRACE;
            let gives_up = ends
                || self.launch.rank == 0
                    && (began.elapsed() >= ROOM_TIMEOUT || self.uploads.as_ref().is_none_or(UploadQueue::is_stuck));
            let fails = match &room {
                Err(CheckpointError::NoRoom { .. }) => gives_up,
                other => other.is_err(),
            };
            let is_short = room.is_err();
            let flags = [is_short, fails || (is_short && self.failure.is_some()), self.is_uploaded(), gives_up];
            let [is_short, fails, uploaded, gives_up] = any(collective, flags)?;
            if !is_short || fails || gives_up {
                messages.append(&mut self.messages);
                self.messages = messages;
                return agree(collective, room);
            }
            if uploaded {
                self.on_uploaded();
            } else {
                std::thread::sleep(POLL_INTERVAL);
            }
        }
    }

    /// Prepares the folder of a step: deletes an older checkpoint of the step, whose manifest must not apply to the new files,
    /// and makes room in the spool.
    fn room_for(&mut self, step: u64, bytes: u64) -> Result<(), CheckpointError> {
        let Some(publisher) = &self.publisher else { return Ok(()) };
        let path = self.store.local_path(&step_folder_name(step)).unwrap_or_default();
        if path.exists() {
            // Earlier commands of the publisher to this folder come first.
            let published = publisher.wait();
            step_folder::clear(&self.store, step)?;
            self.on_published(published);
        }
        let (world_size, local_world_size) = (self.launch.world_size as u64, self.launch.local_world_size as u64);
        self.spool_room_for(bytes / world_size * local_world_size)?;
        Ok(step_folder::mark_unfinished(&self.store, step)?)
    }

    fn spool_room_for(&mut self, bytes: u64) -> Result<(), CheckpointError> {
        let (Some(publisher), Some(uploads)) = (&self.publisher, &mut self.uploads) else { return Ok(()) };
        if uploads.make_room(bytes).is_ok() {
            return Ok(());
        }
        // Deletions in progress may make enough room.
        let published = publisher.wait();
        let room = uploads.make_room(bytes);
        self.on_published(published);
        room
    }

    /// Adds the upload backlog to the error of a full disk under the spool.
    fn explain(&self, error: CheckpointError) -> CheckpointError {
        match (&self.uploads, error) {
            (Some(uploads), CheckpointError::Store(StoreError::Full { url, source })) => {
                uploads.no_room(format!("the disk of {url} is full ({source})"))
            }
            (_, error) => error,
        }
    }

    fn is_uploaded(&self) -> bool {
        self.uploads.as_ref().is_some_and(UploadQueue::is_uploaded)
    }

    /// Moves on to the next upload, after all ranks have agreed that the current one is complete.
    pub(crate) fn on_uploaded(&mut self) {
        let Some(uploads) = &mut self.uploads else { return };
        if let Some(step) = uploads.on_uploaded(self.publisher.as_ref()) {
            self.messages.push(format!("uploaded {} to {}", step_folder_name(step), uploads.url()));
        }
    }

    /// Processes the results of the background threads. Returns messages for the user.
    pub(crate) fn poll(&mut self) -> Vec<String> {
        let published = self.publisher.as_ref().map(Publisher::poll).unwrap_or_default();
        self.on_published(published);
        if let Some(uploads) = &mut self.uploads {
            self.messages.extend(uploads.poll());
            if let Some(error) = uploads.failure() {
                self.failure.get_or_insert(error);
            }
        }
        std::mem::take(&mut self.messages)
    }

    fn on_published(&mut self, published: Vec<Result<u64, CheckpointError>>) {
        for result in published {
            match result {
                Ok(step) => {
                    self.saved_step = Some(step);
                    self.messages.push(format!("saved {}", step_folder_name(step)));
                    if let Some(uploads) = &mut self.uploads {
                        uploads.on_published(step);
                    }
                }
                Err(error) => {
                    let error = self.explain(error);
                    self.failure.get_or_insert(error);
                }
            }
        }
    }

    /// Returns the error after which saving cannot continue, once.
    pub(crate) fn failure(&mut self) -> Option<CheckpointError> {
        self.failure.take()
    }

    /// Returns the upload status of a run in a remote store.
    pub(crate) fn upload_status(&self) -> Option<UploadStatus> {
        self.uploads.as_ref().map(UploadQueue::status)
    }

    /// Waits until all saved checkpoints are published. All ranks call it together. Returns what is not uploaded.
    ///
    /// # Errors
    /// Returns an error on all ranks if a checkpoint could not be written.
    pub(crate) fn complete(
        &mut self,
        collective: &dyn Collective,
        on_message: &mut dyn FnMut(&str),
    ) -> Result<Option<MissingUploads>, CheckpointError> {
        let published = self.publisher.as_ref().map(Publisher::wait).unwrap_or_default();
        self.on_published(published);
        self.poll().iter().for_each(|message| on_message(message));
        agree(collective, self.failure.take().map_or(Ok(()), Err))?;
        let uploads = self.uploads.as_ref().filter(|uploads| !uploads.is_empty());
        Ok(uploads.map(|uploads| missing_uploads(uploads, "at the end of the run", false)))
    }

    /// Waits until all saved checkpoints are published and uploaded. Waits for uploads for at most `timeout`, and until
    /// `interrupted` returns true on some rank. All ranks call it together. Returns what is not uploaded.
    ///
    /// # Errors
    /// Returns an error on all ranks if a checkpoint could not be written.
    pub(crate) fn finish(
        &mut self,
        collective: &dyn Collective,
        timeout: Duration,
        interrupted: &dyn Fn() -> bool,
        on_message: &mut dyn FnMut(&str),
    ) -> Result<Option<MissingUploads>, CheckpointError> {
        if let Some(uploads) = &self.uploads {
            uploads.lift_rate_limit();
        }
        let published = self.publisher.as_ref().map(Publisher::wait).unwrap_or_default();
        self.on_published(published);
        let began = Instant::now();
        let mut last_message = None;
        loop {
            self.poll().iter().for_each(|message| on_message(message));
            let expired = self.launch.rank == 0 && began.elapsed() >= timeout;
            let flags = [self.failure.is_some(), self.is_uploaded(), expired, interrupted()];
            let [failed, uploaded, expired, interrupted] = any(collective, flags)?;
            if failed {
                agree(collective, self.failure.take().map_or(Ok(()), Err))?;
            }
            if uploaded {
                self.on_uploaded();
            }
            let Some(uploads) = self.uploads.as_ref().filter(|uploads| !uploads.is_empty()) else {
                self.poll().iter().for_each(|message| on_message(message));
                return Ok(None);
            };
            if expired || interrupted {
                let when = match interrupted {
                    true => "when a signal arrived".to_owned(),
                    false => format!("after {} (checkpoint.upload_timeout)", humantime::format_duration(timeout)),
                };
                return Ok(Some(missing_uploads(uploads, &when, interrupted)));
            }
            if last_message.is_none_or(|last: Instant| last.elapsed() >= MESSAGE_INTERVAL) {
                last_message = Some(Instant::now());
                on_message(&format!("uploading to {}: {}", uploads.url(), uploads.describe_backlog()));
            }
            if !uploaded {
                std::thread::sleep(POLL_INTERVAL);
            }
        }
    }
}

fn missing_uploads(uploads: &UploadQueue, when: &str, interrupted: bool) -> MissingUploads {
    let (url, backlog) = (uploads.url(), uploads.describe_backlog());
    let what = format!("not everything is in {url} {when}: {backlog}; start again on this machine to upload the rest");
    MissingUploads { what, interrupted }
}

/// Returns, for each flag, whether it is set on any rank.
fn any<const N: usize>(collective: &dyn Collective, flags: [bool; N]) -> Result<[bool; N], CheckpointError> {
    let mut numbers = flags.map(|flag| f64::from(u8::from(flag)));
    collective.all_reduce_scalars(&mut numbers, Reduction::Max)?;
    Ok(numbers.map(|number| number > 0.0))
}
