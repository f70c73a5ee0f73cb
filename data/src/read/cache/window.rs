//! The shuffle window that a cache limit allows.

use std::cmp::Reverse;

use crate::error::DataError;
use crate::format::manifest::Manifest;

/// Returns the bytes that a cache must hold so that each shard is fetched once per epoch: the size of the current
/// window and the next one, which in the worst case contain the largest shards. A window of 0 requires the whole
/// dataset.
pub fn needed_bytes(manifest: &Manifest, window: u64) -> u64 {
    let sizes = descending_sizes(manifest);
    match usize::try_from(window.saturating_mul(2)) {
        Ok(0) | Err(_) => sizes.iter().sum(),
        Ok(shards) => sizes.iter().take(shards).sum(),
    }
}

/// Returns the largest window that a cache of `limit` bytes allows: 0 (a global shuffle) if the whole dataset fits, and
/// `None` if not even two shards fit.
pub fn largest_window(manifest: &Manifest, limit: Option<u64>) -> Option<u64> {
    let sizes = descending_sizes(manifest);
    let limit = limit.unwrap_or(u64::MAX);
    if sizes.iter().sum::<u64>() <= limit {
        return Some(0);
    }
    let sums = sizes.iter().scan(0, |sum: &mut u64, &bytes| {
        *sum += bytes;
        Some(*sum)
    });
    let shards = sums.take_while(|&sum| sum <= limit).count() as u64;
    (shards >= 2).then_some(shards / 2)
}

/// Returns the number of shards to shuffle together with a cache of `limit` bytes: `wanted` (0 for all) if given, and
/// otherwise as many as the limit allows.
///
/// # Errors
/// Returns [`DataError::CacheLimit`], which names a sufficient limit.
pub fn choose_window(manifest: &Manifest, limit: Option<u64>, wanted: Option<u64>) -> Result<u64, DataError> {
    let too_small = |window| {
        let needed = needed_bytes(manifest, window);
        DataError::CacheLimit { limit: limit.unwrap_or(u64::MAX), window, needed }
    };
    let fits = |window| limit.is_none_or(|limit| needed_bytes(manifest, window) <= limit);
    match wanted {
        None => largest_window(manifest, limit).ok_or_else(|| too_small(1)),
        Some(window) if fits(window) => Ok(window),
        Some(window) => Err(too_small(window)),
    }
}

fn descending_sizes(manifest: &Manifest) -> Vec<u64> {
    let mut sizes: Vec<u64> = manifest.shards.iter().map(|shard| shard.bytes).collect();
    sizes.sort_unstable_by_key(|&bytes| Reverse(bytes));
    sizes
}
