//! What a node fetches when its cache drops what is needed last.

use crate::read::shuffle::Shuffle;

/// Bytes a node fetches in each of `epochs` epochs. `sizes` are the shards' bytes. The shards of a window and of the
/// next one are always in the cache together; of the others the one with the farthest next use goes first.
pub fn egress(shuffle: &Shuffle, sizes: &[u64], limit: Option<u64>, epochs: u64) -> Vec<u64> {
    let limit = limit.unwrap_or(u64::MAX);
    let mut cached = vec![false; sizes.len()];
    let mut held = 0u64;
    let mut fetched = Vec::new();
    for epoch in 0..epochs {
        let mut bytes = 0;
        for window in shuffle.epoch(epoch) {
            let missing: Vec<usize> = window.shards.iter().copied().filter(|&shard| !cached[shard]).collect();
            let wanted: u64 = missing.iter().map(|&shard| sizes[shard]).sum();
            // Fetched while the window before is still being read.
            let from = window.number.saturating_sub(1);
            held -=
                make_room(&mut cached, sizes, &shuffle.next_uses(from), from, (held + wanted).saturating_sub(limit));
            missing.iter().for_each(|&shard| cached[shard] = true);
            held += wanted;
            bytes += wanted;
        }
        fetched.push(bytes);
    }
    fetched
}

/// Drops shards until `excess` bytes are free or only those of window `reading` and the next one are left; returns the
/// bytes freed.
fn make_room(cached: &mut [bool], sizes: &[u64], next_uses: &[u64], reading: u64, excess: u64) -> u64 {
    let mut freed = 0;
    if excess == 0 {
        return freed;
    }
    let mut idle: Vec<usize> =
        (0..cached.len()).filter(|&shard| cached[shard] && next_uses[shard] > reading + 1).collect();
    idle.sort_by_key(|&shard| (std::cmp::Reverse(next_uses[shard]), shard));
    for shard in idle {
        if freed >= excess {
            break;
        }
        cached[shard] = false;
        freed += sizes[shard];
    }
    freed
}
