//! Quality of a shuffle: the composition of the batches of an epoch.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::format::manifest::Manifest;
use crate::random::{Purpose, global_order};
use crate::read::shuffle::Shuffle;

/// Composition of a batch, as means over the batches of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quality {
    /// Number of shards from which the samples of a batch come.
    pub shards_per_batch: f64,
    /// Largest share of a batch that comes from a single shard.
    pub largest_share: f64,
    /// Number of classes in a batch; null if the manifest does not count them.
    pub classes_per_batch: Option<f64>,
    /// Share of the pairs of samples in a batch that were in the same window in the previous epoch. It is 1 for a full
    /// shuffle, which has one window, and smaller if the samples of a window spread further.
    pub pairs_from_one_window: f64,
}

/// Measures the full batches of the second epoch.
pub fn quality(manifest: &Manifest, shuffle: &Shuffle, global_batch: usize, seed: u64) -> Quality {
    let shard_of = by_sample(manifest.shards.iter().map(|shard| shard.count));
    let labels = labels(manifest, seed);
    let window_before = windows_of_shards(shuffle, 0, manifest.shards.len());
    let order: Vec<u32> = shuffle.epoch(1).iter().flat_map(|window| shuffle.order(window)).collect();
    let size = global_batch.min(order.len()).max(1);
    let (mut shards, mut largest, mut classes, mut pairs) = (0.0, 0.0, 0.0, 0.0);
    for batch in order.chunks_exact(size) {
        let mut of_shards: Vec<u32> = batch.iter().map(|&sample| shard_of[sample as usize]).collect();
        let mut of_windows: Vec<u32> = of_shards.iter().map(|&shard| window_before[shard as usize]).collect();
        let (counts, before) = (counts(&mut of_shards), counts(&mut of_windows));
        shards += counts.len() as f64;
        largest += counts.iter().copied().max().unwrap_or(0) as f64 / size as f64;
        pairs +=
            before.iter().map(|&count| (count * (count - 1)) as f64).sum::<f64>() / (size * (size - 1)).max(1) as f64;
        if let Some(labels) = &labels {
            classes += batch.iter().map(|&sample| labels[sample as usize]).collect::<BTreeSet<_>>().len() as f64;
        }
    }
    let batches = (order.len() / size).max(1) as f64;
    Quality {
        shards_per_batch: shards / batches,
        largest_share: largest / batches,
        classes_per_batch: labels.map(|_| classes / batches),
        pairs_from_one_window: pairs / batches,
    }
}

/// Returns the number of the group of each sample, for groups with these sizes.
fn by_sample(counts: impl Iterator<Item = u64>) -> Vec<u32> {
    (0..).zip(counts).flat_map(|(group, count)| std::iter::repeat_n(group, count as usize)).collect()
}

/// Returns a label for each sample. The true assignment is a random permutation, and any other one is equivalent.
fn labels(manifest: &Manifest, seed: u64) -> Option<Vec<u32>> {
    let counted = manifest.class_counts.iter().try_fold(0u64, |total, &count| total.checked_add(count));
    if counted != Some(manifest.num_samples) {
        return None;
    }
    let sorted = by_sample(manifest.class_counts.iter().copied());
    let spread = global_order(seed, 0, Purpose::ShardOrder, sorted.len());
    Some(spread.into_iter().map(|place| sorted[place as usize]).collect())
}

/// Returns the window of `epoch` that contains each shard.
fn windows_of_shards(shuffle: &Shuffle, epoch: u64, shards: usize) -> Vec<u32> {
    let mut windows = vec![0; shards];
    for (number, window) in (0..).zip(shuffle.epoch(epoch)) {
        window.shards.iter().for_each(|&shard| windows[shard] = number);
    }
    windows
}

/// Counts the occurrences of each value.
fn counts(values: &mut [u32]) -> Vec<usize> {
    values.sort_unstable();
    values.chunk_by(|a, b| a == b).map(<[u32]>::len).collect()
}
