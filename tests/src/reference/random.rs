//! Random numbers from ChaCha8, with (seed, purpose, epoch) as the key and the sample, step or window as the stream
//! number.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use xxhash_rust::xxh3::xxh3_64;

use super::schedule::normal_quantile;

/// Purpose: the order of the samples in an epoch.
pub const EPOCH_ORDER: u64 = 1;
/// Purpose: the order of the pictures in the shards.
pub const SHARD_ORDER: u64 = 2;
/// Purpose: whether a sample is mirrored.
pub const FLIP: u64 = 3;
/// Purpose: the noise of a sample's latent.
pub const POSTERIOR_NOISE: u64 = 4;
/// Purpose: the order of a sample's tokens, the first of which are masked.
pub const MASK_ORDER: u64 = 5;
/// Purpose: whether a sample's label is dropped.
pub const LABEL_DROP: u64 = 6;
/// Purpose: the share of masked tokens in a step.
pub const MASK_RATIO: u64 = 7;
/// Purpose: the order of the shards in an epoch.
pub const SHARD_WINDOWS: u64 = 9;
/// Purpose: the order of the samples in a window of shards.
pub const WINDOW_ORDER: u64 = 10;

/// A stream of random numbers.
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// Returns the stream of numbers for a purpose.
    pub fn new(seed: u64, purpose: u64, epoch: u64, stream: u64) -> Self {
        let numbers = [seed, purpose, epoch, 0].map(u64::to_le_bytes).concat();
        let mut generator = ChaCha8Rng::from_seed(numbers.try_into().expect("32 bytes"));
        generator.set_stream(stream);
        Self(generator)
    }

    /// Draws a uniform number in [0, 1) from the 53 upper bits of a word.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / 2.0_f64.powi(53)
    }

    /// Draws a standard normal number as the quantile of half a word.
    pub fn normal(&mut self) -> f64 {
        normal_quantile((f64::from(self.0.next_u32()) + 0.5) / 2.0_f64.powi(32))
    }

    /// Returns the values in a random order (Fisher-Yates shuffle from the end).
    pub fn shuffled<T>(&mut self, mut values: Vec<T>) -> Vec<T> {
        for last in (1..values.len()).rev() {
            let other = self.below(last as u64 + 1);
            values.swap(last, other as usize);
        }
        values
    }

    /// Draws a uniform number in 0..bound: the upper half of the product of a word and the bound. Products whose lower
    /// half is below 2^64 mod bound are drawn again, so that all numbers are equally likely (Lemire, arXiv 1805.10941).
    fn below(&mut self, bound: u64) -> u64 {
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(bound);
            let surplus = ((1_u128 << 64) % u128::from(bound)) as u64;
            if product as u64 >= surplus {
                return (product >> 64) as u64;
            }
        }
    }
}

/// Returns the seed of libtorch's generator for a purpose: the XXH3-64 of the purpose's name and the numbers.
pub fn libtorch_seed(purpose: &str, numbers: &[u64]) -> i64 {
    let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    xxh3_64(&[purpose.as_bytes(), &numbers].concat()).cast_signed()
}
