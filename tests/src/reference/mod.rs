//! A reference implementation of training and sampling, for tests.
//!
//! It is written from the definitions (the paper, arXiv 2503.02883, and the documented formats), not from the product's
//! code, and for clarity rather than speed. It uses the product's forward and backward passes, which the golden tests
//! compare with the official PyTorch code. Everything around them is implemented here a second time: the order of
//! samples, the random draws for each sample, the update of weights, moments and averages, and the sampling of
//! pictures. Tests run the real programs and compare their results with the reference.

pub mod random;
pub mod records;
pub mod sampling;
pub mod schedule;
pub mod training;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks libtorch's random number generator, which all threads share. Hold the lock from seeding to the last draw.
pub fn generator() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}
