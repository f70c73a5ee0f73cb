//! The bytes that a run downloads from the store of its dataset.

use arinar_data::{
    DataError,
    commands::simulate,
    format::Manifest,
    read::{Shuffle, cache::choose_window},
};
use serde::Serialize;

/// Number of simulated epochs: the first with an empty cache, and some with a full one, whose mean stands for all later ones.
const SIMULATED_EPOCHS: u64 = 4;

/// Bytes downloaded from the store by all machines together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Egress {
    /// Size of the dataset in bytes.
    pub dataset_bytes: u64,
    /// Number of shards that are shuffled together; 0 means all.
    pub window: u64,
    /// Bytes of the first epoch.
    pub first_epoch: u64,
    /// Bytes of each later epoch, on average.
    pub later_epochs: u64,
    /// Bytes of the whole run.
    pub total: u64,
}

/// Access of the machines of a run to its dataset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DatasetAccess {
    /// Shards are copied to a cache. Otherwise they are read in place, and nothing is downloaded.
    pub is_cached: bool,
    /// `data.cache_limit`.
    pub cache_limit: Option<u64>,
    /// `data.shuffle_window`.
    pub window: Option<u64>,
    /// Seed of the sample order.
    pub seed: u64,
    /// Length of the run in epochs.
    pub epochs: f64,
    /// Number of machines, each with its own cache.
    pub machines: u64,
}

impl Egress {
    /// Simulates the reads of a run.
    ///
    /// # Errors
    /// Returns [`DataError::CacheLimit`] if the limit of the cache is too small for any window.
    pub(crate) fn simulate(manifest: &Manifest, access: &DatasetAccess) -> Result<Self, DataError> {
        let sizes: Vec<u64> = manifest.shards.iter().map(|shard| shard.bytes).collect();
        let dataset_bytes = sizes.iter().sum();
        let limit = access.cache_limit.filter(|_| access.is_cached);
        let window = choose_window(manifest, limit, access.window)?;
        if !access.is_cached {
            return Ok(Self { dataset_bytes, window, first_epoch: 0, later_epochs: 0, total: 0 });
        }
        let shuffle = Shuffle::new(manifest.shards.iter().map(|shard| shard.count), access.seed, window);
        let downloads = simulate::egress(&shuffle, &sizes, limit, SIMULATED_EPOCHS);
        let first = downloads[0];
        let later = downloads[1..].iter().sum::<u64>() / (SIMULATED_EPOCHS - 1);
        let total = first as f64 * access.epochs.min(1.0) + later as f64 * (access.epochs - 1.0).max(0.0);
        let machines = access.machines;
        Ok(Self {
            dataset_bytes,
            window,
            first_epoch: machines * first,
            later_epochs: machines * later,
            total: machines * total as u64,
        })
    }
}
