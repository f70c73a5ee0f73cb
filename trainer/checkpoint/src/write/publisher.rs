//! The publisher: a thread that makes checkpoints in a local folder valid and deletes superseded ones.

use std::{
    io,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use arinar_store::{Store, StoreError};
use bytes::Bytes;

use crate::{
    error::{CheckpointError, disk_error},
    format::{
        manifest::{self, MANIFEST, STATE, step_folder_name},
        step_folder,
    },
    retention::Retention,
};

/// A checkpoint whose files of tensors are all in its folder.
pub(crate) struct WrittenCheckpoint {
    pub step: u64,
    /// Contents of the state and the manifest, which make it valid.
    pub state: Vec<u8>,
    pub manifest: Vec<u8>,
}

/// A command to the thread. Commands are executed in order.
enum Command {
    Publish(WrittenCheckpoint),
    Delete(u64),
    /// Requests a reply once all earlier commands are executed.
    Sync,
}

/// The step of a published checkpoint; `None` in reply to [`Command::Sync`].
type Reply = Result<Option<u64>, CheckpointError>;

/// A handle to the thread.
pub(crate) struct Publisher {
    commands: Option<mpsc::Sender<Command>>,
    replies: mpsc::Receiver<Reply>,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    /// Starts a publisher for the local folder `store`. With a retention, superseded checkpoints are deleted whenever one is
    /// published; without one, checkpoints are kept until [`Publisher::delete`].
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub(crate) fn start(store: Arc<Store>, retention: Option<Retention>) -> io::Result<Self> {
        let (commands, received) = mpsc::channel();
        let (reply, replies) = mpsc::channel();
        let work = move || {
            for command in received {
                let has_reply = !matches!(command, Command::Delete(_));
                let result = execute(&store, command, retention);
                let failed = result.is_err();
                if failed || has_reply {
                    // The receiver is gone once the run ends.
                    let _ = reply.send(result);
                }
                if failed {
                    // Later commands may delete what the failed one should have superseded.
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("publisher".to_owned()).spawn(work)?;
        Ok(Self { commands: Some(commands), replies, thread: Some(thread) })
    }

    /// Publishes a checkpoint in the background.
    pub(crate) fn publish(&self, checkpoint: WrittenCheckpoint) {
        self.send(Command::Publish(checkpoint));
    }

    /// Deletes a checkpoint in the background, if all earlier commands succeed.
    pub(crate) fn delete(&self, step: u64) {
        self.send(Command::Delete(step));
    }

    fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // The thread has ended after a failure, which it has reported.
            let _ = commands.send(command);
        }
    }

    /// Returns the steps published since the last call, or the error with which the publisher has ended.
    pub(crate) fn poll(&self) -> Vec<Result<u64, CheckpointError>> {
        self.replies.try_iter().filter_map(Result::transpose).collect()
    }

    /// Waits until all commands are executed, and returns the same as [`Publisher::poll`].
    pub(crate) fn wait(&self) -> Vec<Result<u64, CheckpointError>> {
        self.send(Command::Sync);
        // The channel closes when the thread ends after a failure.
        let replies = self.replies.iter().take_while(|reply| !matches!(reply, Ok(None)));
        replies.filter_map(Result::transpose).collect()
    }
}

impl Drop for Publisher {
    /// Waits until all commands are executed.
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic has printed its message. The checkpoint it was publishing has no manifest.
            let _ = thread.join();
        }
    }
}

fn execute(store: &Store, command: Command, retention: Option<Retention>) -> Reply {
    match command {
        Command::Publish(checkpoint) => {
            let step = checkpoint.step;
            publish(store, checkpoint)?;
            if let Some(retention) = retention {
                prune(store, step, retention)?;
            }
            Ok(Some(step))
        }
        Command::Delete(step) => step_folder::delete(store, step).map(|()| None).map_err(CheckpointError::from),
        Command::Sync => Ok(None),
    }
}

/// Writes the state, then the manifest, which replaces the marker of an unfinished checkpoint.
fn publish(store: &Store, checkpoint: WrittenCheckpoint) -> Result<(), CheckpointError> {
    let folder = step_folder_name(checkpoint.step);
    store.put(&format!("{folder}/{STATE}"), Bytes::from(checkpoint.state))?;
    store.put(&format!("{folder}/{MANIFEST}"), Bytes::from(checkpoint.manifest))?;
    step_folder::unmark(store, checkpoint.step)?;
    // The store syncs the folder of the checkpoint; its entry in the folder of the run is synced here.
    if let Some(path) = store.local_path("") {
        let synced = std::fs::File::open(&path).and_then(|folder| folder.sync_all());
        synced.map_err(|error| disk_error(&path, error))?;
    }
    Ok(())
}

/// Deletes checkpoints that that of `step` supersedes, and unfinished ones before it that killed runs have left.
///
/// # Errors
/// Returns an error if the store cannot be read or written.
pub(crate) fn prune(store: &Store, step: u64, retention: Retention) -> Result<(), StoreError> {
    let listed = manifest::list_steps(store)?;
    let committed: Vec<u64> = listed.iter().filter(|entry| entry.committed).map(|entry| entry.step).collect();
    let unfinished = listed.iter().filter(|entry| !entry.committed && entry.step < step).map(|entry| entry.step);
    for old in retention.superseded_by(step, &committed).into_iter().chain(unfinished) {
        step_folder::delete(store, old)?;
    }
    Ok(())
}
