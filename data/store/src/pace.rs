//! Sending no faster than told, so that what is sent in the background leaves the machine to what matters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long it takes at most to notice that nothing holds it back any more.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A limit on the bytes that are sent in a second, over all objects that keep this pace.
#[derive(Debug)]
pub struct Pace {
    /// 0 for no limit.
    bytes_per_second: AtomicU64,
    /// When the next part may be sent.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// At most so many bytes a second; None for no limit.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        let bytes_per_second = AtomicU64::new(bytes_per_second.map_or(0, |rate| rate.max(1)));
        Self { bytes_per_second, next: Mutex::new(None) }
    }

    /// Lifts the limit, also for what is waiting.
    pub fn hurry(&self) {
        self.bytes_per_second.store(0, Ordering::Relaxed);
    }

    /// Waits until `bytes` more may be sent.
    pub(super) async fn wait(&self, bytes: u64) {
        let start = self.reserve(bytes);
        while self.rate() > 0 && Instant::now() < start {
            sleep(LOOK_EVERY.min(start - Instant::now())).await;
        }
    }

    fn reserve(&self, bytes: u64) -> Instant {
        let now = Instant::now();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = next.map_or(now, |next| next.max(now));
        let rate = self.rate();
        if rate > 0 {
            *next = Some(start + Duration::from_secs_f64(bytes as f64 / rate as f64));
        }
        start
    }

    fn rate(&self) -> u64 {
        self.bytes_per_second.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("runtime").block_on(future)
    }

    #[test]
    fn parts_are_spread_and_a_hurry_ends_that() {
        run(async {
            let pace = Pace::new(Some(1_000_000));
            let began = Instant::now();
            for _ in 0..4 {
                pace.wait(100_000).await;
            }
            // The first goes at once.
            assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
            pace.wait(3_600_000_000).await;
            pace.hurry();
            pace.wait(1).await;
            assert!(began.elapsed() < Duration::from_secs(60));
        });
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        run(async {
            let pace = Pace::new(None);
            let began = Instant::now();
            pace.wait(u64::MAX).await;
            pace.wait(u64::MAX).await;
            assert!(began.elapsed() < Duration::from_secs(1));
        });
    }
}
