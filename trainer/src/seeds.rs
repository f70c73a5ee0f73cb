//! Seeds of libtorch's random number generator. Each is a hash of its purpose and of the numbers it depends on.

use xxhash_rust::xxh3::xxh3_64;

/// Returns the seed of the initial weights, which is the same on all ranks.
pub(crate) fn initial_weights(seed: u64) -> i64 {
    hash("initial weights", &[seed])
}

/// Returns the seed of dropout for one micro-batch of one rank.
pub(crate) fn dropout(seed: u64, step: u64, rank: usize, micro_batch: usize) -> i64 {
    hash("dropout", &[seed, step, rank as u64, micro_batch as u64])
}

fn hash(purpose: &str, numbers: &[u64]) -> i64 {
    let mut bytes = purpose.as_bytes().to_vec();
    for number in numbers {
        bytes.extend(number.to_le_bytes());
    }
    xxh3_64(&bytes).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_micro_batch_has_its_own() {
        let mut seeds = vec![initial_weights(1)];
        for step in 0..4 {
            for rank in 0..3 {
                seeds.extend((0..2).map(|micro| dropout(1, step, rank, micro)));
            }
        }
        let count = seeds.len();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), count);
        assert_eq!(dropout(1, 2, 0, 1), dropout(1, 2, 0, 1));
    }
}
