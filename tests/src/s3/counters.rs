//! Counters of requests, faults and bytes.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Requests and bytes of an object. Bytes are those of bodies, without headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Number of requests.
    pub requests: u64,
    /// Bytes sent to clients (egress).
    pub sent: u64,
    /// Bytes received from clients.
    pub received: u64,
}

/// A snapshot of all counters.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Requests by method: GET, HEAD, PUT, POST, DELETE, and LIST for a GET that lists a bucket.
    pub requests: BTreeMap<String, u64>,
    /// Injected faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Traffic by object, `BUCKET/KEY` (percent-encoded as in the request). Listings are counted under `BUCKET`.
    pub objects: BTreeMap<String, Traffic>,
}

impl Counters {
    /// Returns the number of requests of a method.
    pub fn of_method(&self, method: &str) -> u64 {
        self.requests.get(method).copied().unwrap_or(0)
    }

    /// Returns the number of injected faults.
    pub fn faults(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Returns the total traffic of all objects whose `BUCKET/KEY` starts with `prefix`.
    pub fn below(&self, prefix: &str) -> Traffic {
        let matching = self.objects.iter().filter(|(key, _)| key.starts_with(prefix));
        matching.fold(Traffic::default(), |sum, (_, one)| Traffic {
            requests: sum.requests + one.requests,
            sent: sum.sent + one.sent,
            received: sum.received + one.received,
        })
    }
}

/// The live counters.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<Counters>);

impl Live {
    pub(super) fn request(&self, method: &str, key: &str, received: usize) {
        let mut counters = self.lock();
        *counters.requests.entry(method.to_owned()).or_default() += 1;
        let traffic = counters.objects.entry(key.to_owned()).or_default();
        traffic.requests += 1;
        traffic.received += received as u64;
    }

    pub(super) fn sent(&self, key: &str, bytes: usize) {
        self.lock().objects.entry(key.to_owned()).or_default().sent += bytes as u64;
    }

    pub(super) fn fault(&self, name: &str) {
        *self.lock().faults.entry(name.to_owned()).or_default() += 1;
    }

    pub(super) fn snapshot(&self) -> Counters {
        self.lock().clone()
    }

    pub(super) fn reset(&self) {
        *self.lock() = Counters::default();
    }

    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
