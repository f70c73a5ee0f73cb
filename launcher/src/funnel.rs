//! A thread that writes, so that a terminal that stands still, or a slow disk, never keeps the launcher from watching.

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

/// Items that wait to be written.
const ROOM: usize = 8192;
/// Where nothing was written for so long with no room left, items are dropped until there is room again.
const PATIENCE: Duration = Duration::from_secs(5);

/// The sender's end.
#[derive(Debug)]
pub struct Funnel<T> {
    items: mpsc::Sender<T>,
    stuck: Arc<AtomicBool>,
}

// A derived one would ask T to be Clone.
impl<T> Clone for Funnel<T> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), stuck: Arc::clone(&self.stuck) }
    }
}

/// Tells when the thread has written all and ended.
#[derive(Debug)]
pub struct Drained(blocking::Receiver<()>);

impl Drained {
    /// Waits until all senders are gone and all is written, but not for ever.
    pub fn wait(self) {
        let _ = self.0.recv_timeout(PATIENCE);
    }
}

impl<T: Send + 'static> Funnel<T> {
    /// Starts the thread that hands items to `write`, in order.
    ///
    /// # Errors
    /// There is no room for a thread.
    pub fn start(name: &str, mut write: impl FnMut(T) + Send + 'static) -> io::Result<(Self, Drained)> {
        let (items, mut received) = mpsc::channel(ROOM);
        let (done, drained) = blocking::channel();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some(item) = received.blocking_recv() {
                write(item);
            }
            let _ = done.send(());
        })?;
        Ok((Self { items, stuck: Arc::default() }, Drained(drained)))
    }

    /// Hands on an item; waits while there is no room, but not for ever.
    pub async fn put(&self, item: T) {
        if self.stuck.load(Ordering::Relaxed) {
            self.stuck.store(self.items.try_send(item).is_err(), Ordering::Relaxed);
        } else if tokio::time::timeout(PATIENCE, self.items.send(item)).await.is_err() {
            self.stuck.store(true, Ordering::Relaxed);
        }
    }

    /// Hands on an item that must not be lost: where there is no room now, it follows later. Within tokio alone.
    pub fn insist(&self, item: T) {
        if let Err(mpsc::error::TrySendError::Full(item)) = self.items.try_send(item) {
            let funnel = self.clone();
            tokio::spawn(async move { funnel.put(item).await });
        }
    }

    /// Hands on an item if there is room.
    pub fn offer(&self, item: T) {
        let _ = self.items.try_send(item);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_arrives_in_order() {
        let (sender, written) = blocking::channel();
        let (funnel, drained) = Funnel::start("test", move |item| sender.send(item).unwrap()).unwrap();
        let wanted: Vec<usize> = (0..3 * ROOM).collect();
        for &item in &wanted {
            funnel.put(item).await;
        }
        drop(funnel);
        drained.wait();
        assert_eq!(written.iter().collect::<Vec<_>>(), wanted);
    }

    #[tokio::test]
    async fn a_writer_that_stands_still_is_dropped_on() {
        let (go, wait) = blocking::channel::<()>();
        let (funnel, drained) = Funnel::start("test", move |_| wait.recv().unwrap_or_default()).unwrap();
        // As if patience had run out already.
        funnel.stuck.store(true, Ordering::Relaxed);
        for item in 0..3 * ROOM {
            funnel.offer(item);
        }
        funnel.put(0).await;
        assert!(funnel.stuck.load(Ordering::Relaxed));
        drop((go, funnel));
        drained.wait();
    }
}
