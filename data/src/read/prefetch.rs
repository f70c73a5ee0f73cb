//! Prefetching: one thread per node downloads the shards of the current window and the next one.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::error::DataError;
use crate::read::dataset::Dataset;
use crate::read::lock::lock;
use crate::read::shuffle::Shuffle;

/// Pause after a failed download. The reader that needs the shard will encounter the error itself.
const ERROR_PAUSE: Duration = Duration::from_secs(5);
/// Pause while slower ranks still use the space.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(100);

/// A handle to the prefetching thread. Dropping it stops the thread after its current download.
#[derive(Debug)]
pub(crate) struct Prefetcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Number of the window being read; `None` stops the thread.
    window: Mutex<Option<u64>>,
    changed: Condvar,
}

impl Prefetcher {
    /// Starts to prefetch from window number `window`.
    ///
    /// # Errors
    /// Returns an error if the system cannot start a thread.
    pub(crate) fn start(dataset: Arc<Dataset>, shuffle: Shuffle, window: u64) -> Result<Self, DataError> {
        let shared = Arc::new(Shared { window: Mutex::new(Some(window)), changed: Condvar::new() });
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("shard-prefetch".to_owned())
            .spawn(move || run(&dataset, &shuffle, &of_thread))
            .map_err(|source| DataError::File { path: "shard-prefetch thread".into(), source })?;
        Ok(Self { shared })
    }

    /// Moves on to window number `window`.
    pub(crate) fn enter(&self, window: u64) {
        *lock(&self.shared.window) = Some(window);
        self.shared.changed.notify_all();
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        // The thread is not joined: a rank that is shutting down must not wait for a download.
        *lock(&self.shared.window) = None;
        self.shared.changed.notify_all();
    }
}

fn run(dataset: &Dataset, shuffle: &Shuffle, shared: &Shared) {
    let mut done = None;
    loop {
        let Some(window) = *lock(&shared.window) else { return };
        if done == Some(window) {
            let guard = lock(&shared.window);
            let unchanged = |now: &mut Option<u64>| *now == Some(window);
            drop(shared.changed.wait_while(guard, unchanged).unwrap_or_else(|poisoned| poisoned.into_inner()));
            continue;
        }
        let pause = match prefetch(dataset, shuffle, shared, window) {
            Ok(true) => {
                done = Some(window);
                continue;
            }
            Ok(false) => NO_ROOM_PAUSE,
            Err(error) => {
                dataset.reporter().warn(&format!("prefetching failed: {error}"));
                ERROR_PAUSE
            }
        };
        let guard = lock(&shared.window);
        drop(shared.changed.wait_timeout_while(guard, pause, |now| *now == Some(window)));
    }
}

/// Downloads all shards of the window and the next one, until the reader moves on. Returns false if there is no room at
/// present. The shards remain closed until they are read, so that a slower rank can use their space.
fn prefetch(dataset: &Dataset, shuffle: &Shuffle, shared: &Shared, window: u64) -> Result<bool, DataError> {
    for number in [window, window + 1] {
        for shard in shuffle.window_at(number).map(|window| window.shards).unwrap_or_default() {
            if *lock(&shared.window) != Some(window) {
                return Ok(true);
            }
            if !dataset.prefetch(shard)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
