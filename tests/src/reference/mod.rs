//! Training and sampling once more, written from their definitions and from no code of the product.
//!
//! The official code in PyTorch vouches for the model itself: its passes forward and backward (`tests/golden`). What lies
//! around the model is written out here a second time, in the plainest way, from the paper (arXiv 2503.02883) and from
//! the formats that the documentation promises: which sample comes when, what is drawn for it, how a step changes
//! weights, moments and averages, how a picture is sampled. The tests let the real programs run and compare every number
//! that they leave with what these functions give.

pub mod random;
pub mod records;
pub mod sampling;
pub mod schedule;
pub mod training;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// libtorch has one generator of random numbers, whatever the thread: whoever seeds it holds this until the numbers are
/// drawn.
pub(crate) fn generator() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}
