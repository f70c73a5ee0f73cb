//! How long a store is given, and when it is asked again.

use std::future::Future;
use std::time::{Duration, Instant};

use rand::Rng;
use tokio::time::{sleep, timeout};

use crate::failure::{Failure, Kind};

/// Seconds for which a failing operation is tried again before it ends in an error (default 60). A request that makes
/// no progress for a quarter of it (at most 15 s) counts as failed.
pub const PATIENCE_VARIABLE: &str = "ARINAR_STORE_PATIENCE";

const DEFAULT_PATIENCE: f64 = 60.0;
const LONGEST_STALL: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// An upload that is slower than this counts as stalled.
const SLOWEST_UPLOAD: f64 = 100e3;
/// No operation is tried oftener without progress, however patient.
const MOST_ATTEMPTS: u32 = 50;

/// How long a store is given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    total: Duration,
}

impl Patience {
    /// From the value of [`PATIENCE_VARIABLE`].
    pub(super) fn parse(value: Option<&str>) -> Result<Self, String> {
        let seconds = match value.map(str::trim) {
            None | Some("") => DEFAULT_PATIENCE,
            Some(text) => text.parse().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds)).ok_or_else(|| {
                format!("{PATIENCE_VARIABLE}={text} is not a number of seconds from 0.1 to 86400; correct or unset it")
            })?,
        };
        Ok(Self { total: Duration::from_secs_f64(seconds) })
    }

    /// The longest wait for the next sign of life of a request.
    pub(super) fn stall(&self) -> Duration {
        (self.total / 4).min(LONGEST_STALL)
    }

    /// The longest that sending so many bytes may take.
    pub(super) fn upload(&self, bytes: usize) -> Duration {
        self.stall() + Duration::from_secs_f64(bytes as f64 / SLOWEST_UPLOAD)
    }
}

/// The attempts at one operation.
pub(super) struct Attempts {
    patience: Patience,
    since: Instant,
    failed: u32,
}

impl Attempts {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, since: Instant::now(), failed: 0 }
    }

    /// Something was achieved: patience begins anew.
    pub(super) fn progress(&mut self) {
        self.since = Instant::now();
        self.failed = 0;
    }

    /// After a failed attempt: waits for a random time that grows with every failure, so that clients which failed
    /// together do not come back together, and returns if the next attempt is due.
    ///
    /// # Errors
    /// The failure, if trying again does not cure it or patience has ended; it then says how often it was tried.
    pub(super) async fn again(&mut self, mut failure: Failure) -> Result<(), Failure> {
        self.failed += 1;
        if failure.kind != Kind::Passing {
            return Err(failure);
        }
        let longest = FIRST_PAUSE.saturating_mul(1 << self.failed.min(16)).min(LONGEST_PAUSE);
        let pause = rand::rng().random_range(Duration::ZERO..=longest);
        if self.failed >= MOST_ATTEMPTS || self.since.elapsed() + pause > self.patience.total {
            let seconds = self.since.elapsed().as_secs_f64();
            failure.text = format!("{} ({} attempts in {seconds:.1} s; try again later)", failure.text, self.failed);
            return Err(failure);
        }
        sleep(pause).await;
        Ok(())
    }
}

/// An attempt that takes longer has failed.
pub(super) async fn within<T>(
    limit: Duration,
    attempt: impl Future<Output = object_store::Result<T>>,
) -> Result<T, Failure> {
    match timeout(limit, attempt).await {
        Ok(result) => result.map_err(Failure::from),
        Err(_) => Err(Failure::passing(format!("no answer for {:.1} s", limit.as_secs_f64()))),
    }
}

/// Makes requests until one succeeds or the failure is final; each may take as long as `limit`.
pub(super) async fn retrying<T>(
    patience: Patience,
    limit: Duration,
    mut request: impl AsyncFnMut() -> object_store::Result<T>,
) -> Result<T, Failure> {
    let mut attempts = Attempts::new(patience);
    loop {
        match within(limit, request()).await {
            Ok(value) => return Ok(value),
            Err(failure) => attempts.again(failure).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_a_number_of_seconds() {
        assert_eq!(Patience::parse(None).expect("default").stall(), Duration::from_secs(15));
        assert_eq!(Patience::parse(Some("2")).expect("two").stall(), Duration::from_millis(500));
        for wrong in ["soon", "-1", "0", "1e9", "NaN"] {
            let error = Patience::parse(Some(wrong)).expect_err(wrong);
            assert!(error.contains(PATIENCE_VARIABLE) && error.contains(wrong), "{error}");
        }
    }
}
