//! What a run fetches from the store of its dataset.

use arinar_data::{
    DataError,
    commands::simulate,
    format::Manifest,
    read::{Shuffle, cache::choose_window},
};
use serde::Serialize;

/// Epochs simulated: the first with an empty cache, then some with a full one, whose mean stands for the others.
const SIMULATED: u64 = 4;

/// Bytes fetched from the store, over all machines.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Egress {
    /// Bytes of the dataset.
    pub dataset_bytes: u64,
    /// Shards shuffled together; 0 for all.
    pub window: u64,
    /// In the first epoch.
    pub first_epoch: u64,
    /// In each later one, on average.
    pub later_epochs: u64,
    /// Over the whole run.
    pub total: u64,
}

/// How the machines of a run read its dataset.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Shards are copied to a cache; else they are read where they lie, and nothing is fetched.
    pub cached: bool,
    /// `data.cache_limit`.
    pub cache_limit: Option<u64>,
    /// `data.shuffle_window`.
    pub window: Option<u64>,
    /// Seed of the order.
    pub seed: u64,
    /// Epochs of the run.
    pub epochs: f64,
    /// Machines, each with a cache of its own.
    pub machines: u64,
}

impl Egress {
    /// Of a run over this dataset.
    ///
    /// # Errors
    /// [`DataError::CacheLimit`] for a limit under which nothing can be read.
    pub fn of_run(manifest: &Manifest, reading: &Reading) -> Result<Self, DataError> {
        let sizes: Vec<u64> = manifest.shards.iter().map(|shard| shard.bytes).collect();
        let dataset_bytes = sizes.iter().sum();
        let limit = reading.cache_limit.filter(|_| reading.cached);
        let window = choose_window(manifest, limit, reading.window)?;
        if !reading.cached {
            return Ok(Self { dataset_bytes, window, first_epoch: 0, later_epochs: 0, total: 0 });
        }
        let shuffle = Shuffle::new(manifest.shards.iter().map(|shard| shard.count), reading.seed, window);
        let fetched = simulate::egress(&shuffle, &sizes, limit, SIMULATED);
        let first = fetched[0];
        let later = fetched[1..].iter().sum::<u64>() / (SIMULATED - 1);
        let total = first as f64 * reading.epochs.min(1.0) + later as f64 * (reading.epochs - 1.0).max(0.0);
        let machines = reading.machines;
        Ok(Self {
            dataset_bytes,
            window,
            first_epoch: machines * first,
            later_epochs: machines * later,
            total: machines * total as u64,
        })
    }
}
