//! A one-time event that threads can wait for.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::lock;

#[derive(Debug, Default)]
pub(crate) struct Completion {
    at: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Completion {
    pub(crate) fn complete(&self) {
        *lock(&self.at) = Some(Instant::now());
        self.changed.notify_all();
    }

    pub(crate) fn wait(&self) {
        let mut at = lock(&self.at);
        while at.is_none() {
            at = self.changed.wait(at).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for at most `timeout`. Returns true if the event has happened.
    pub(crate) fn wait_for(&self, timeout: Duration) -> bool {
        let at = lock(&self.at);
        at.is_some() || self.changed.wait_timeout(at, timeout).unwrap_or_else(PoisonError::into_inner).0.is_some()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.at().is_some()
    }

    /// Returns when the event happened, if it has.
    pub(crate) fn at(&self) -> Option<Instant> {
        *lock(&self.at)
    }
}
