//! Timeouts and retries of requests.

use std::future::Future;
use std::time::{Duration, Instant};

use rand::Rng;
use tokio::time::{sleep, timeout};

use crate::failure::{Failure, Kind};

/// Name of the environment variable with the number of seconds for which a failing operation is retried (default 60). A
/// request without progress for a quarter of this time, at most 15 s, counts as failed.
pub const RETRY_TIMEOUT_VARIABLE: &str = "ARINAR_STORE_PATIENCE";

const DEFAULT_TIMEOUT_SECS: f64 = 60.0;
const MAX_STALL: Duration = Duration::from_secs(15);
const BASE_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Bytes per second below which an upload counts as stalled.
const MIN_UPLOAD_RATE: f64 = 100e3;
/// Maximum number of attempts without progress.
const MAX_ATTEMPTS: u32 = 50;

/// Timeouts of operations and requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct RetryPolicy {
    timeout: Duration,
}

impl RetryPolicy {
    /// Parses the value of [`RETRY_TIMEOUT_VARIABLE`].
    pub(super) fn parse(value: Option<&str>) -> Result<Self, String> {
        let seconds = match value.map(str::trim) {
            None | Some("") => DEFAULT_TIMEOUT_SECS,
            Some(text) => text.parse().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds)).ok_or_else(|| {
                format!(
                    "{RETRY_TIMEOUT_VARIABLE}={text} is not a number of seconds from 0.1 to 86400; correct or unset it"
                )
            })?,
        };
        Ok(Self { timeout: Duration::from_secs_f64(seconds) })
    }

    /// Maximum time that a request may take without progress.
    pub(super) fn stall_timeout(&self) -> Duration {
        (self.timeout / 4).min(MAX_STALL)
    }

    /// Maximum time that an upload of `bytes` bytes may take.
    pub(super) fn upload_timeout(&self, bytes: usize) -> Duration {
        self.stall_timeout() + Duration::from_secs_f64(bytes as f64 / MIN_UPLOAD_RATE)
    }
}

/// The attempts of one operation.
pub(super) struct Attempts {
    policy: RetryPolicy,
    since: Instant,
    failed: u32,
}

impl Attempts {
    pub(super) fn new(policy: RetryPolicy) -> Self {
        Self { policy, since: Instant::now(), failed: 0 }
    }

    /// Restarts the timeout and the backoff after progress.
    pub(super) fn reset(&mut self) {
        self.since = Instant::now();
        self.failed = 0;
    }

    /// Waits after a failed attempt and returns when the next attempt is due. The delay is random, so that clients that
    /// failed together do not retry together, and grows with every failure.
    ///
    /// # Errors
    /// Returns the failure if it is permanent or if the timeout has expired. The text then contains the number of
    /// attempts.
    pub(super) async fn back_off(&mut self, mut failure: Failure) -> Result<(), Failure> {
        self.failed += 1;
        if failure.kind != Kind::Temporary {
            return Err(failure);
        }
        let limit = BASE_BACKOFF.saturating_mul(1 << self.failed.min(16)).min(MAX_BACKOFF);
        let delay = rand::rng().random_range(Duration::ZERO..=limit);
        if self.failed >= MAX_ATTEMPTS || self.since.elapsed() + delay > self.policy.timeout {
            let seconds = self.since.elapsed().as_secs_f64();
            failure.text = format!("{} ({} attempts in {seconds:.1} s; try again later)", failure.text, self.failed);
            return Err(failure);
        }
        sleep(delay).await;
        Ok(())
    }
}

/// Runs an attempt, which fails if it takes longer than `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    attempt: impl Future<Output = object_store::Result<T>>,
) -> Result<T, Failure> {
    match timeout(limit, attempt).await {
        Ok(result) => result.map_err(Failure::from),
        Err(_) => Err(Failure::temporary(format!("no answer for {:.1} s", limit.as_secs_f64()))),
    }
}

/// Repeats a request until it succeeds or its failure is final. Each attempt may take as long as `limit`.
pub(super) async fn retrying<T>(
    policy: RetryPolicy,
    limit: Duration,
    mut request: impl AsyncFnMut() -> object_store::Result<T>,
) -> Result<T, Failure> {
    let mut attempts = Attempts::new(policy);
    loop {
        match within(limit, request()).await {
            Ok(value) => return Ok(value),
            Err(failure) => attempts.back_off(failure).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_is_a_number_of_seconds() {
        assert_eq!(RetryPolicy::parse(None).expect("default").stall_timeout(), Duration::from_secs(15));
        assert_eq!(RetryPolicy::parse(Some("2")).expect("two").stall_timeout(), Duration::from_millis(500));
        for wrong in ["soon", "-1", "0", "1e9", "NaN"] {
            let error = RetryPolicy::parse(Some(wrong)).expect_err(wrong);
            assert!(error.contains(RETRY_TIMEOUT_VARIABLE) && error.contains(wrong), "{error}");
        }
    }
}
