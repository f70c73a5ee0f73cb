//! The interface between a training loop and its checkpoints.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use arinar_collective::{Collective, LaunchEnvironment, agree};
use arinar_store::Store;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::CheckpointError,
    flags::CheckpointFlags,
    layout::TensorSet,
    options::CheckpointOptions,
    read::found::FoundCheckpoint,
    remote::outage::UploadStatus,
    run_store::RunStore,
    state::CheckpointState,
    write::writer::{MissingUploads, Writer},
};

/// Finds, restores and saves the checkpoints of a run. All ranks make the same calls together.
///
/// In the order of use: [`open`](Self::open), [`find`](Self::find), [`restore`](Self::restore),
/// [`start_writer`](Self::start_writer). Then in every step [`poll`](Self::poll) before the all-reduce,
/// [`wait_until_copied`](Self::wait_until_copied) before the optimizer step, and [`advance`](Self::advance) with the flags that
/// the ranks have agreed on; [`save`](Self::save) where a checkpoint is due. At the end, [`finish`](Self::finish).
pub struct CheckpointManager<'a> {
    collective: &'a dyn Collective,
    /// `None` for a manager that never saves.
    run: Option<RunStore<'a>>,
    writer: Option<Writer>,
}

/// Results of the background threads, and the flags to agree on with the other ranks.
#[derive(Debug, Default)]
pub struct CheckpointPoll {
    /// Progress of saving on this rank.
    pub flags: CheckpointFlags,
    /// Messages for the user.
    pub messages: Vec<String>,
    /// The error after which saving cannot continue.
    pub failure: Option<CheckpointError>,
}

/// Progress of saving, for logs and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SaveStatus {
    /// The newest checkpoint that this start of the run has made valid. Only rank 0 knows.
    pub saved_step: Option<u64>,
    /// Progress of uploads to a remote store; `None` for a run in a local folder.
    pub upload: Option<UploadStatus>,
}

impl<'a> CheckpointManager<'a> {
    /// Opens the folder of a run, and acquires its lease, which keeps other runs out. If checkpoints of an earlier start are
    /// spread over several nodes, uploads them first, for at most `upload_timeout`.
    ///
    /// # Errors
    /// Returns an error on all ranks if the folder cannot be used, if another run uses it, or if the uploads fail.
    pub fn open(
        collective: &'a dyn Collective,
        options: CheckpointOptions,
        launch: LaunchEnvironment,
        upload_timeout: Duration,
        on_message: &mut dyn FnMut(&str),
    ) -> Result<Self, CheckpointError> {
        let mut run = RunStore::open(collective, options, launch)?;
        if run.must_upload_first() {
            let missing = run.writer()?.finish(collective, upload_timeout, &|| false, on_message)?;
            if let Some(missing) = missing {
                agree(collective, Err(CheckpointError::NotUploaded { what: missing.what }))?;
            }
            run.refresh_inventory()?;
        }
        Ok(Self { collective, run: Some(run), writer: None })
    }

    /// Creates a manager that never saves, for a rehearsal.
    pub fn disabled(collective: &'a dyn Collective) -> Self {
        Self { collective, run: None, writer: None }
    }

    /// Makes a disabled manager behave as if it copied the tensors of a checkpoint until `copied` is closed.
    #[doc(hidden)]
    pub fn pretend_to_copy(
        &mut self,
        launch: LaunchEnvironment,
        copied: mpsc::Receiver<()>,
    ) -> Result<(), CheckpointError> {
        // Opening a folder neither reads nor creates anything.
        let mut writer = Writer::new(launch, Arc::new(Store::open(".")?), None, None);
        writer.pretend_to_copy(copied);
        self.writer = Some(writer);
        Ok(())
    }

    /// Returns true if the run is in a remote store.
    pub fn is_remote(&self) -> bool {
        self.run.as_ref().is_some_and(RunStore::is_remote)
    }

    /// Finds the checkpoint to resume from, verifies it, and makes it available on every node. Returns `None` if the run
    /// starts from step 0.
    ///
    /// # Errors
    /// Returns an error on all ranks if the run must not be overwritten, if there is no checkpoint where there must be one,
    /// if none is valid, or if a store fails.
    pub fn find(&mut self) -> Result<Option<FoundCheckpoint>, CheckpointError> {
        self.run.as_mut().map_or(Ok(None), RunStore::find)
    }

    /// Reads a checkpoint into the tensors of this rank and returns its state.
    ///
    /// # Errors
    /// Returns an error on all ranks if the checkpoint is damaged or holds another model.
    pub fn restore<C: DeserializeOwned>(
        &self,
        found: &FoundCheckpoint,
        into: TensorSet<'_>,
    ) -> Result<CheckpointState<C>, CheckpointError> {
        match &self.run {
            Some(run) => run.restore(found, into),
            None => Err(CheckpointError::NoCheckpoint { url: found.run.clone() }),
        }
    }

    /// Starts the background threads that save checkpoints.
    ///
    /// # Errors
    /// Returns an error on all ranks if a thread cannot be started.
    pub fn start_writer(&mut self) -> Result<(), CheckpointError> {
        self.writer = self.run.as_ref().map(RunStore::writer).transpose()?;
        Ok(())
    }

    /// Processes the results of the background threads. Does not communicate with other ranks.
    pub fn poll(&mut self) -> CheckpointPoll {
        let Some(writer) = &mut self.writer else { return CheckpointPoll::default() };
        let messages = writer.poll();
        CheckpointPoll { flags: writer.flags(), messages, failure: writer.failure() }
    }

    /// Waits until the tensors that were passed to [`save`](Self::save) may change.
    pub fn wait_until_copied(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.wait_until_copied();
        }
    }

    /// Continues saving after all ranks have agreed on their flags. If the files of a checkpoint are written, it becomes valid
    /// in the background.
    ///
    /// # Errors
    /// Returns an error on all ranks if some rank could not write its files.
    pub fn advance(&mut self, agreed: CheckpointFlags) -> Result<(), CheckpointError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        if agreed.uploaded {
            writer.on_uploaded();
        }
        if agreed.written {
            writer.commit(self.collective)?;
        }
        Ok(())
    }

    /// Starts saving a checkpoint, unless the newest one is already of this step. A checkpoint that is still being written is
    /// finished first. The tensors must not change before [`wait_until_copied`](Self::wait_until_copied) returns. Once
    /// `interrupted` returns true on some rank, it soon stops waiting for room in the spool.
    ///
    /// # Errors
    /// Returns an error on all ranks if there is no room, or if the disk fails.
    pub fn save<C: Serialize>(
        &mut self,
        state: &CheckpointState<C>,
        tensors: &TensorSet<'_>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), CheckpointError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.commit(self.collective)?;
        if writer.has_started(state.step) {
            return Ok(());
        }
        writer.start(self.collective, state, tensors, interrupted)
    }

    /// Waits until all checkpoints are saved, for a run that ends because of an error. Does not wait for uploads; returns what is
    /// not uploaded.
    ///
    /// # Errors
    /// Returns an error on all ranks if a checkpoint could not be written.
    pub fn complete(&mut self, on_message: &mut dyn FnMut(&str)) -> Result<Option<MissingUploads>, CheckpointError> {
        let Some(writer) = &mut self.writer else { return Ok(None) };
        writer.commit(self.collective)?;
        writer.complete(self.collective, on_message)
    }

    /// Waits until all checkpoints are saved, and uploaded if the run is in a remote store. Waits for uploads for at most
    /// `timeout`, and until `interrupted` returns true on some rank. Returns what is not uploaded.
    ///
    /// # Errors
    /// Returns an error on all ranks if a checkpoint could not be written.
    pub fn finish(
        &mut self,
        timeout: Duration,
        interrupted: &dyn Fn() -> bool,
        on_message: &mut dyn FnMut(&str),
    ) -> Result<Option<MissingUploads>, CheckpointError> {
        let Some(writer) = &mut self.writer else { return Ok(None) };
        writer.commit(self.collective)?;
        writer.finish(self.collective, timeout, interrupted, on_message)
    }

    /// Returns how far saving is.
    pub fn status(&self) -> SaveStatus {
        let Some(writer) = &self.writer else { return SaveStatus::default() };
        SaveStatus { saved_step: writer.saved_step(), upload: writer.upload_status() }
    }
}
