//! How much a cache must hold, and which files go when a new one needs their space.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::folder::{self, CachedFile, DAMAGED, PART};
use crate::error::DataError;
use crate::format::manifest::Manifest;

/// Bytes a cache must hold so that each shard is fetched once an epoch: the window being read and the next one, at
/// worst the largest shards of all. A window of 0 needs the whole dataset.
pub fn needed_bytes(manifest: &Manifest, window: u64) -> u64 {
    let sizes = descending_sizes(manifest);
    match usize::try_from(window.saturating_mul(2)) {
        Ok(0) | Err(_) => sizes.iter().sum(),
        Ok(shards) => sizes.iter().take(shards).sum(),
    }
}

/// The best shuffle that a cache of `limit` bytes allows: 0 (global) where the whole dataset fits, else the largest
/// window; None where not even two shards fit.
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

/// Shards to shuffle together under a cache of `limit` bytes: as `wanted` (0 for all), else as many as it allows.
///
/// # Errors
/// [`DataError::CacheLimit`] with the limit that would do.
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

/// Space that somebody wants.
pub(super) struct Request<'a> {
    pub(super) dataset_id: &'a str,
    pub(super) manifest: &'a Manifest,
    pub(super) next_uses: &'a [u64],
    /// The file that will take it; its present size does not count.
    pub(super) part: &'a Path,
    pub(super) bytes: u64,
    /// Own copies may go only if they are needed later than this.
    pub(super) keep_until: Option<u64>,
}

/// Deletes files until the requested bytes fit below the limit. Returns the bytes that are missing because everything
/// left is in use. The folder must be locked.
pub(super) fn make_room(folder: &Path, limit: u64, request: &Request) -> io::Result<u64> {
    let mut files = folder::files(folder)?;
    files.retain(|file| file.path != request.part);
    let used: u64 = files.iter().map(|file| file.bytes).sum();
    let mut missing = (used + request.bytes).saturating_sub(limit);
    for file in eviction_order(files, request) {
        if missing == 0 {
            break;
        }
        if folder::delete_unused(&file.path)? {
            missing = missing.saturating_sub(file.bytes);
        }
    }
    Ok(missing)
}

/// Which files go first: what is no copy (left by killed processes, or damaged), then copies of other datasets, the
/// oldest first, then our own, the one needed farthest in the future first.
fn eviction_order(files: Vec<CachedFile>, request: &Request) -> Vec<CachedFile> {
    let next_uses: BTreeMap<&str, u64> = request
        .manifest
        .shards
        .iter()
        .map(|shard| shard.name.as_str())
        .zip(request.next_uses.iter().copied())
        .collect();
    let mut ranked: Vec<_> = files
        .into_iter()
        .filter_map(|file| {
            let junk = file.name.ends_with(PART) || file.name.ends_with(DAMAGED);
            let own = (file.dataset_id == request.dataset_id).then(|| next_uses.get(file.name.as_str()).copied());
            let rank = match own {
                _ if junk => (0, 0, file.modified),
                None => (1, 0, file.modified),
                Some(next_use) => {
                    let next_use = next_use.unwrap_or(u64::MAX);
                    if request.keep_until.is_some_and(|until| next_use <= until) {
                        return None;
                    }
                    (2, u64::MAX - next_use, file.modified)
                }
            };
            Some((rank, file))
        })
        .collect();
    ranked.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.path.cmp(&y.path)));
    ranked.into_iter().map(|(_, file)| file).collect()
}
