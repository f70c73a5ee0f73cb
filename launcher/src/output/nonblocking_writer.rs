//! A writer thread, so that a blocked terminal or a slow disk never blocks the launcher.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as blocking,
    },
    time::Duration,
};

use tokio::sync::mpsc;

/// Capacity of the queue in items.
const CAPACITY: usize = 8192;
/// When the queue has been full for this long, items are dropped until there is room again.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle that queues items for a writer thread.
#[derive(Debug)]
pub(super) struct NonblockingWriter<T> {
    items: mpsc::Sender<T>,
    stalled: Arc<AtomicBool>,
}

// Derived, it would require T: Clone.
impl<T> Clone for NonblockingWriter<T> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), stalled: Arc::clone(&self.stalled) }
    }
}

/// A handle to wait for the end of a writer thread.
#[derive(Debug)]
pub(super) struct WriterThread(blocking::Receiver<()>);

impl WriterThread {
    /// Waits until all writers are dropped and all items are written, or until the stall timeout has passed.
    pub(super) fn join(self) {
        let _ = self.0.recv_timeout(STALL_TIMEOUT);
    }
}

impl<T: Send + 'static> NonblockingWriter<T> {
    /// Starts a thread that calls `write` with each item, in order.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(name: &str, mut write: impl FnMut(T) + Send + 'static) -> io::Result<(Self, WriterThread)> {
        let (items, mut received) = mpsc::channel(CAPACITY);
        let (done, finished) = blocking::channel();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some(item) = received.blocking_recv() {
                write(item);
            }
            let _ = done.send(());
        })?;
        Ok((Self { items, stalled: Arc::default() }, WriterThread(finished)))
    }

    /// Queues an item. Waits while the queue is full, until the stall timeout.
    pub(super) async fn send(&self, item: T) {
        if self.stalled.load(Ordering::Relaxed) {
            self.stalled.store(self.items.try_send(item).is_err(), Ordering::Relaxed);
        } else if tokio::time::timeout(STALL_TIMEOUT, self.items.send(item)).await.is_err() {
            self.stalled.store(true, Ordering::Relaxed);
        }
    }

    /// Queues an item without waiting. While the queue is full, a task waits in its place, so that the item is not lost.
    ///
    /// # Panics
    /// Panics if the queue is full outside a tokio runtime.
    pub(super) fn send_detached(&self, item: T) {
        if let Err(mpsc::error::TrySendError::Full(item)) = self.items.try_send(item) {
            let writer = self.clone();
            tokio::spawn(async move { writer.send(item).await });
        }
    }

    /// Queues an item if there is room, and drops it otherwise.
    pub(super) fn send_or_drop(&self, item: T) {
        let _ = self.items.try_send(item);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn items_arrive_in_order() {
        let (sender, written) = blocking::channel();
        let (writer, thread) = NonblockingWriter::start("test", move |item| sender.send(item).unwrap()).unwrap();
        let wanted: Vec<usize> = (0..3 * CAPACITY).collect();
        for &item in &wanted {
            writer.send(item).await;
        }
        drop(writer);
        thread.join();
        assert_eq!(written.iter().collect::<Vec<_>>(), wanted);
    }

    #[tokio::test]
    async fn items_are_dropped_while_the_thread_is_blocked() {
        let (go, wait) = blocking::channel::<()>();
        let (writer, thread) = NonblockingWriter::start("test", move |_| wait.recv().unwrap_or_default()).unwrap();
        // As if the stall timeout had passed already.
        writer.stalled.store(true, Ordering::Relaxed);
        for item in 0..3 * CAPACITY {
            writer.send_or_drop(item);
        }
        writer.send(0).await;
        assert!(writer.stalled.load(Ordering::Relaxed));
        drop((go, writer));
        thread.join();
    }
}
