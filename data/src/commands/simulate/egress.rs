//! Bytes that a node downloads if its cache evicts the shards with the farthest next use.

use crate::read::shuffle::Shuffle;

/// Returns the bytes that a node downloads in each of `epochs` epochs. `sizes` are the sizes of the shards in bytes.
/// The cache always holds the shards of the current window and of the next one; of the others, it evicts the shard with
/// the farthest next use first.
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
            // The shards are downloaded while the previous window is being read.
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

/// Evicts shards until `excess` bytes are free, or until only those of window `reading` and the next one are left.
/// Returns the number of bytes freed.
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

#[cfg(test)]
mod tests {
    use super::*;
    const COUNTS: [u64; 10] = [30; 10];
    const SIZES: [u64; 10] = [100; 10];

    fn shuffle(window: u64) -> Shuffle {
        Shuffle::new(COUNTS, 3, window)
    }

    #[test]
    fn a_cache_of_two_windows_fetches_every_shard_once_an_epoch() {
        for window in [1, 2, 5] {
            let fetched = egress(&shuffle(window), &SIZES, Some(2 * window * 100), 4);
            assert_eq!(fetched[0], 1000);
            // A shard that is still cached from the end of the previous epoch is not fetched again.
            assert!(fetched[1..].iter().all(|&bytes| (1000 - 2 * window * 100..=1000).contains(&bytes)), "{fetched:?}");
        }
    }

    #[test]
    fn a_cache_of_everything_fetches_once_for_all_epochs() {
        for (window, limit) in [(0, None), (0, Some(1000)), (2, None), (2, Some(1000))] {
            assert_eq!(egress(&shuffle(window), &SIZES, limit, 3), [1000, 0, 0], "{window} {limit:?}");
        }
    }

    #[test]
    fn a_larger_cache_never_fetches_more() {
        let mut before = u64::MAX;
        for limit in (400..=1000).step_by(100) {
            let fetched: u64 = egress(&shuffle(2), &SIZES, Some(limit), 6).iter().sum();
            assert!(fetched <= before, "{limit}: {fetched} after {before}");
            before = fetched;
        }
        assert_eq!(before, 1000);
    }
}
