//! A limit on the rate of uploads, so that uploads in the background leave bandwidth to the training.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Maximum delay until a waiting upload notices that the limit has been lifted.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A limit on the bytes per second of all uploads that share it.
#[derive(Debug)]
pub struct RateLimiter {
    /// Limit in bytes per second; 0 for no limit.
    bytes_per_second: AtomicU64,
    /// Time at which the next part may be sent.
    next: Mutex<Option<Instant>>,
}

impl RateLimiter {
    /// Creates a limiter for this number of bytes per second; `None` for no limit.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        let bytes_per_second = AtomicU64::new(bytes_per_second.map_or(0, |rate| rate.max(1)));
        Self { bytes_per_second, next: Mutex::new(None) }
    }

    /// Lifts the limit, also for uploads that are waiting.
    pub fn lift(&self) {
        self.bytes_per_second.store(0, Ordering::Relaxed);
    }

    /// Waits until another `bytes` bytes may be sent.
    pub(super) async fn wait(&self, bytes: u64) {
        let start = self.reserve(bytes);
        while self.rate() > 0 && Instant::now() < start {
            sleep(POLL_INTERVAL.min(start - Instant::now())).await;
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
    fn parts_are_delayed_until_the_limit_is_lifted() {
        run(async {
            let limiter = RateLimiter::new(Some(1_000_000));
            let started = Instant::now();
            for _ in 0..4 {
                limiter.wait(100_000).await;
            }
            // The first one is not delayed.
            assert!(started.elapsed() >= Duration::from_millis(290), "{:?}", started.elapsed());
            limiter.wait(3_600_000_000).await;
            limiter.lift();
            limiter.wait(1).await;
            assert!(started.elapsed() < Duration::from_secs(60));
        });
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        run(async {
            let limiter = RateLimiter::new(None);
            let started = Instant::now();
            limiter.wait(u64::MAX).await;
            limiter.wait(u64::MAX).await;
            assert!(started.elapsed() < Duration::from_secs(1));
        });
    }
}
