//! Eviction: the choice of files to delete when a new one needs their space.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::folder::{self, CachedFile, DAMAGED, PART};
use crate::format::manifest::Manifest;

/// A request for space for one shard.
pub(super) struct Request<'a> {
    pub(super) dataset_id: &'a str,
    pub(super) manifest: &'a Manifest,
    pub(super) next_uses: &'a [u64],
    /// File for which the space is requested; its current size does not count.
    pub(super) part: &'a Path,
    pub(super) bytes: u64,
    /// Window up to which copies of this dataset must be kept.
    pub(super) keep_until: Option<u64>,
}

/// Deletes files until the requested bytes fit within the limit. Returns the number of bytes that are missing because
/// all remaining files are in use. The folder must be locked.
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

/// Sorts the files by the order of eviction: first partial and damaged copies, then copies of other datasets with the
/// oldest first, then copies of this dataset with the farthest next use first.
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
            let unusable = file.name.ends_with(PART) || file.name.ends_with(DAMAGED);
            let own = (file.dataset_id == request.dataset_id).then(|| next_uses.get(file.name.as_str()).copied());
            let rank = match own {
                _ if unusable => (0, 0, file.modified),
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
