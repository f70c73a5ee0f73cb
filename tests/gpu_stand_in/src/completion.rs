//! Something that happens once and can be waited for.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::lock;

#[derive(Debug, Default)]
pub struct Completion {
    at: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Completion {
    pub fn complete(&self) {
        *lock(&self.at) = Some(Instant::now());
        self.changed.notify_all();
    }

    pub fn wait(&self) {
        let mut at = lock(&self.at);
        while at.is_none() {
            at = self.changed.wait(at).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits, but not for long; true if it has happened.
    pub fn wait_for(&self, time: Duration) -> bool {
        let at = lock(&self.at);
        at.is_some() || self.changed.wait_timeout(at, time).unwrap_or_else(PoisonError::into_inner).0.is_some()
    }

    pub fn is_complete(&self) -> bool {
        self.at().is_some()
    }

    /// When it happened.
    pub fn at(&self) -> Option<Instant> {
        *lock(&self.at)
    }
}
