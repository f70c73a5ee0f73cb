//! Making a checkpoint valid, beside the training: its state, its manifest, and only then the end of older ones.

use std::{
    io,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use arinar_store::{Store, StoreError};
use bytes::Bytes;

use super::{
    CheckpointError,
    manifest::{self, MANIFEST, STATE, folder},
    retention::Retention,
    snapshot::disk_error,
    step_folder,
};

/// A checkpoint whose files all lie in their folder.
pub(super) struct Complete {
    pub step: u64,
    /// Contents of the two files that make it valid.
    pub state: Vec<u8>,
    pub manifest: Vec<u8>,
}

/// What there is to do, in this order.
enum Order {
    Publish(Complete),
    Delete(u64),
    Tell,
}

/// The step of a published checkpoint; nothing where an order only asked to be told.
type Told = Result<Option<u64>, CheckpointError>;

/// A thread that publishes checkpoints in a local folder.
pub(super) struct Publisher {
    orders: Option<mpsc::Sender<Order>>,
    told: mpsc::Receiver<Told>,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    /// Publishes in `store`, a local one. With a retention, each published checkpoint is followed by deleting what it
    /// supersedes; without one, checkpoints stay until [`Publisher::delete`].
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(store: Arc<Store>, retention: Option<Retention>) -> io::Result<Self> {
        let (orders, received) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let work = move || {
            for order in received {
                let silent = matches!(order, Order::Delete(_));
                let result = carry_out(&store, order, retention);
                let failed = result.is_err();
                if failed || !silent {
                    // Nobody listens any more once the run ends.
                    let _ = tell.send(result);
                }
                if failed {
                    // What was ordered next may delete what the failed one should have superseded.
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("publisher".to_owned()).spawn(work)?;
        Ok(Self { orders: Some(orders), told, thread: Some(thread) })
    }

    /// Publishes in the background.
    pub fn publish(&self, complete: Complete) {
        self.order(Order::Publish(complete));
    }

    /// Deletes a checkpoint in the background, after what was ordered before has succeeded.
    pub fn delete(&self, step: u64) {
        self.order(Order::Delete(step));
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // After a failure, of which the training will hear, there is nobody to take it.
            let _ = orders.send(order);
        }
    }

    /// Steps published since the last call, or what went wrong.
    pub fn poll(&self) -> Vec<Result<u64, CheckpointError>> {
        self.told.try_iter().filter_map(Result::transpose).collect()
    }

    /// As [`Publisher::poll`], once everything ordered is done.
    pub fn wait(&self) -> Vec<Result<u64, CheckpointError>> {
        self.order(Order::Tell);
        // The channel closes when the thread has ended after a failure.
        let told = self.told.iter().take_while(|told| !matches!(told, Ok(None)));
        told.filter_map(Result::transpose).collect()
    }
}

impl Drop for Publisher {
    /// Carries out what was ordered.
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic has printed its message; the checkpoint it left has no manifest.
            let _ = thread.join();
        }
    }
}

/// The step that was published, if any.
fn carry_out(store: &Store, order: Order, retention: Option<Retention>) -> Told {
    match order {
        Order::Publish(complete) => {
            let step = complete.step;
            publish(store, complete)?;
            if let Some(retention) = retention {
                clean_up(store, step, retention)?;
            }
            Ok(Some(step))
        }
        Order::Delete(step) => step_folder::delete(store, step).map(|()| None).map_err(CheckpointError::from),
        Order::Tell => Ok(None),
    }
}

/// The manifest is the last file to appear; it takes the place of the mark of an unfinished checkpoint.
fn publish(store: &Store, complete: Complete) -> Result<(), CheckpointError> {
    let folder = folder(complete.step);
    store.put(&format!("{folder}/{STATE}"), Bytes::from(complete.state))?;
    store.put(&format!("{folder}/{MANIFEST}"), Bytes::from(complete.manifest))?;
    step_folder::unmark(store, complete.step)?;
    // The store syncs the folder of what it puts; this one syncs that folder's name.
    if let Some(path) = store.local_path("") {
        let synced = std::fs::File::open(&path).and_then(|folder| folder.sync_all());
        synced.map_err(|error| disk_error(&path, error))?;
    }
    Ok(())
}

/// Deletes superseded checkpoints and what killed runs left of unfinished ones.
pub(super) fn clean_up(store: &Store, step: u64, retention: Retention) -> Result<(), StoreError> {
    let listed = manifest::listed(store)?;
    let committed: Vec<u64> = listed.iter().filter(|entry| entry.committed).map(|entry| entry.step).collect();
    let unfinished = listed.iter().filter(|entry| !entry.committed && entry.step < step).map(|entry| entry.step);
    for old in retention.superseded(&committed).into_iter().chain(unfinished) {
        step_folder::delete(store, old)?;
    }
    Ok(())
}
