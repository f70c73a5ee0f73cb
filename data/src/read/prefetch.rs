//! One reader per node: a thread that fetches the shards of the present and the next window before they are needed.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::read::cache::{lock, warn};
use crate::error::DataError;
use crate::read::dataset::Dataset;
use crate::read::shuffle::Shuffle;

/// Pause after a failed fetch; the reader that needs the shard meets the error itself.
const AFTER_ERROR: Duration = Duration::from_secs(5);
/// Pause where ranks that lag still hold the space.
const NO_ROOM: Duration = Duration::from_millis(100);

/// The thread's handle; dropping it ends the thread after the shard it is busy with.
#[derive(Debug)]
pub struct Prefetcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The window being read; None ends the thread.
    window: Mutex<Option<u64>>,
    changed: Condvar,
}

impl Prefetcher {
    /// Starts fetching from window number `window` on.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(dataset: Arc<Dataset>, shuffle: Shuffle, window: u64) -> Result<Self, DataError> {
        let shared = Arc::new(Shared { window: Mutex::new(Some(window)), changed: Condvar::new() });
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("shard-prefetch".to_owned())
            .spawn(move || run(&dataset, &shuffle, &of_thread))
            .map_err(|source| DataError::File { path: "shard-prefetch thread".into(), source })?;
        Ok(Self { shared })
    }

    /// Tells that the reader has come to window number `window`.
    pub fn enter(&self, window: u64) {
        *lock(&self.shared.window) = Some(window);
        self.shared.changed.notify_all();
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        // Not joined: it may be in the middle of a download, which a rank that was told to end must not wait for.
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
        let pause = match read_ahead(dataset, shuffle, shared, window) {
            Ok(true) => {
                done = Some(window);
                continue;
            }
            Ok(false) => NO_ROOM,
            Err(error) => {
                warn(&format!("reading ahead failed: {error}"));
                AFTER_ERROR
            }
        };
        let guard = lock(&shared.window);
        drop(shared.changed.wait_timeout_while(guard, pause, |now| *now == Some(window)));
    }
}

/// Fetches all shards of the window and of the next one, unless the reader has moved on; false where there is no room
/// now. They stay closed until they are read, so that a rank that lags can have their space.
fn read_ahead(dataset: &Dataset, shuffle: &Shuffle, shared: &Shared, window: u64) -> Result<bool, DataError> {
    for number in [window, window + 1] {
        for shard in shuffle.window_at(number).map(|window| window.shards).unwrap_or_default() {
            if *lock(&shared.window) != Some(window) {
                return Ok(true);
            }
            if !dataset.fetch_ahead(shard)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
