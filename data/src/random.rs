//! Stateless random numbers: every draw is a pure function of (seed, purpose, epoch, sample) or (seed, purpose, step),
//! so that neither a restart nor the world size changes it.
//!
//! The generator is ChaCha8, keyed by (seed, purpose, epoch), with the sample as stream number. This file converts its
//! raw words to numbers, so that an update of a random-number crate cannot change a run.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Purpose of a draw. Different purposes give independent numbers. The discriminants are part of the data order and
/// must never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Order of the samples in an epoch.
    EpochOrder = 1,
    /// Distribution of the pictures over the shards.
    ShardOrder = 2,
    /// Whether a sample is mirrored.
    Flip = 3,
    /// Standard normal noise of the VAE's posterior.
    PosteriorNoise = 4,
    /// Order in which the tokens of a sample are revealed.
    MaskOrder = 5,
    /// Whether a sample's label is dropped to the null class.
    LabelDrop = 6,
    /// Mask ratio of a step.
    MaskRatio = 7,
    /// Seed of dropout.
    Dropout = 8,
    /// Order of the shards in an epoch that is shuffled in windows.
    ShardWindows = 9,
    /// Order of the samples in a window.
    WindowOrder = 10,
}

/// Random numbers of one sample in one epoch.
#[derive(Clone, Debug)]
pub struct SampleRandom(ChaCha8Rng);

impl SampleRandom {
    /// Creates the generator of `sample`, an index in the dataset, in `epoch` for `purpose`.
    pub fn new(seed: u64, epoch: u64, sample: u64, purpose: Purpose) -> Self {
        Self(keyed(seed, epoch, sample, purpose))
    }

    /// Returns a uniform number in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        uniform(&mut self.0)
    }

    /// Returns a standard normal number.
    pub fn normal(&mut self) -> f32 {
        normal(&mut self.0)
    }

    /// Fills `values` with the numbers that repeated calls of [`SampleRandom::normal`] return.
    pub fn fill_normal(&mut self, values: &mut [f32]) {
        values.fill_with(|| normal(&mut self.0));
    }

    /// Returns true with probability `probability`.
    pub fn bernoulli(&mut self, probability: f64) -> bool {
        uniform(&mut self.0) < probability
    }

    /// Returns a random permutation of 0..length.
    pub fn permutation(&mut self, length: usize) -> Vec<i64> {
        let mut order: Vec<i64> = (0..length as i64).collect();
        shuffle(&mut self.0, &mut order);
        order
    }
}

/// Random numbers of one training step, the same on all ranks.
#[derive(Clone, Debug)]
pub struct StepRandom(ChaCha8Rng);

impl StepRandom {
    /// Creates the generator of `step` for `purpose`.
    pub fn new(seed: u64, step: u64, purpose: Purpose) -> Self {
        Self(keyed(seed, 0, step, purpose))
    }

    /// Returns a uniform number in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        uniform(&mut self.0)
    }

    /// Returns 64 random bits, for example to seed another generator.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// Returns a random permutation of 0..length keyed by (seed, epoch); `length` must be below 2^32.
pub(crate) fn global_order(seed: u64, epoch: u64, purpose: Purpose, length: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..length as u32).collect();
    shuffle(&mut keyed(seed, epoch, 0, purpose), &mut order);
    order
}

/// Permutes `samples` in an order keyed by (seed, epoch, window).
pub(crate) fn window_order(seed: u64, epoch: u64, window: u64, mut samples: Vec<u32>) -> Vec<u32> {
    shuffle(&mut keyed(seed, epoch, window, Purpose::WindowOrder), &mut samples);
    samples
}

fn keyed(seed: u64, epoch: u64, stream: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(purpose as u64).to_le_bytes());
    key[16..24].copy_from_slice(&epoch.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(stream);
    generator
}

fn uniform(generator: &mut ChaCha8Rng) -> f64 {
    (generator.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Returns a uniform number in 0..bound without bias (Lemire 2019, arXiv 1805.10941).
fn below(generator: &mut ChaCha8Rng, bound: u64) -> u64 {
    let mut product = u128::from(generator.next_u64()) * u128::from(bound);
    if (product as u64) < bound {
        let threshold = bound.wrapping_neg() % bound;
        while (product as u64) < threshold {
            product = u128::from(generator.next_u64()) * u128::from(bound);
        }
    }
    (product >> 64) as u64
}

/// Shuffles by the algorithm of Fisher and Yates.
fn shuffle<T>(generator: &mut ChaCha8Rng, values: &mut [T]) {
    for last in (1..values.len()).rev() {
        values.swap(last, below(generator, last as u64 + 1) as usize);
    }
}

/// Returns a standard normal number from a single word, so that no state remains between draws.
fn normal(generator: &mut ChaCha8Rng) -> f32 {
    normal_quantile((f64::from(generator.next_u32()) + 0.5) * (1.0 / (1u64 << 32) as f64)) as f32
}

/// Returns the inverse of the standard normal distribution function for `p` in (0, 1) to about 7 digits: PPND7 of
/// Wichura, "Algorithm AS 241", Applied Statistics 37 (1988).
fn normal_quantile(p: f64) -> f64 {
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180625 - q * q;
        let numerator = ((5.910_937_472_0e1 * r + 1.592_911_320_2e2) * r + 5.043_427_193_8e1) * r + 3.387_132_717_9;
        let denominator = ((6.718_756_360_0e1 * r + 7.875_775_766_4e1) * r + 1.789_516_946_9e1) * r + 1.0;
        return q * numerator / denominator;
    }
    let tail = if q < 0.0 { p } else { 1.0 - p };
    let r = (-tail.ln()).sqrt();
    let distance = if r <= 5.0 {
        let r = r - 1.6;
        (((1.702_382_110_3e-1 * r + 1.306_728_481_6) * r + 2.756_815_390_0) * r + 1.423_437_277_7)
            / ((1.202_113_297_5e-1 * r + 7.370_016_425_0e-1) * r + 1.0)
    } else {
        let r = r - 5.0;
        (((1.733_720_399_7e-2 * r + 4.286_829_433_7e-1) * r + 3.081_226_386_0) * r + 6.657_905_115_0)
            / ((1.225_820_263_5e-2 * r + 2.419_789_422_5e-1) * r + 1.0)
    };
    if q < 0.0 { -distance } else { distance }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_normal_distribution() {
        // Python: statistics.NormalDist().inv_cdf(p)
        let known = [
            (0.5, 0.0),
            (0.6, 0.2533471031357997),
            (0.975, 1.9599639845400536),
            (0.01, -2.3263478740408408),
            (1e-10, -6.361340902404056),
            (1e-13, -7.348796102800677),
        ];
        for (p, expected) in known {
            let found = normal_quantile(p);
            assert!((found - expected).abs() <= 3e-7 * expected.abs().max(1.0), "{p}: {found}, expected {expected}");
        }
    }

    /// Every resumed run relies on these numbers. They were computed with an independent implementation of ChaCha8 in
    /// Python (RFC 8439 with eight rounds, a counter and a stream number of 64 bits each).
    #[test]
    fn the_numbers_never_change() {
        let sample = |purpose| SampleRandom::new(1, 2, 3, purpose);
        let mut flips = sample(Purpose::Flip);
        let uniform = [0.9438217647251103, 0.12485900437863118, 0.8775110152523949];
        assert_eq!([(); 3].map(|()| flips.uniform()), uniform);
        let mut drops = sample(Purpose::LabelDrop);
        let dropped: Vec<usize> = (0..12).filter(|_| drops.bernoulli(0.3)).collect();
        assert_eq!(dropped, [2, 4, 9]);
        assert_eq!(sample(Purpose::MaskOrder).permutation(10), [5, 0, 4, 8, 2, 3, 6, 7, 9, 1]);
        assert_eq!(StepRandom::new(1, 4, Purpose::MaskRatio).uniform(), 0.8075894249893261);
        assert_eq!(StepRandom::new(1, 4, Purpose::Dropout).bits(), 0x3f69_acd9_9afc_642a);
        assert_eq!(global_order(1, 2, Purpose::EpochOrder, 12), [9, 0, 8, 3, 2, 7, 5, 10, 6, 4, 11, 1]);
        assert_eq!(global_order(1, 2, Purpose::ShardWindows, 5), [1, 2, 0, 3, 4]);
        assert_eq!(window_order(1, 2, 1, (20..30).collect()), [22, 21, 24, 25, 27, 28, 23, 29, 20, 26]);
    }

    /// Computed like those above, with the quantiles of Python's statistics.NormalDist().
    #[test]
    fn the_noise_never_changes_whether_it_is_drawn_at_once_or_not() {
        let known = [-0.3895515, 2.2284634, -1.0017954, 1.3548636, -0.0872111, 0.0372302, 1.682988, -0.4960836];
        let mut noise = SampleRandom::new(1, 2, 3, Purpose::PosteriorNoise);
        let (mut at_once, one_by_one) = ([0.0; 8], [(); 8].map(|()| noise.normal()));
        SampleRandom::new(1, 2, 3, Purpose::PosteriorNoise).fill_normal(&mut at_once);
        assert_eq!(at_once, one_by_one);
        for (found, expected) in at_once.iter().zip(known) {
            assert!((found - expected).abs() < 1e-6, "{at_once:?}");
        }
    }

    /// Computed like those above. About every second word is rejected for the first bound, and every fourth for the
    /// second.
    #[test]
    fn words_that_would_cause_bias_are_rejected() {
        let draws = |mut generator, bound| -> Vec<u64> { (0..6).map(|_| below(&mut generator, bound)).collect() };
        let known = [
            8841191258145854753,
            8902745186921560495,
            4355648313286050058,
            3037083083106433113,
            6365587339287501175,
            629364829232299402,
        ];
        assert_eq!(draws(keyed(1, 2, 3, Purpose::ShardOrder), (1 << 63) + 1), known);
        let known = [
            2506792919078750888,
            5844954977129082636,
            2769903433287222840,
            2821436113698098356,
            7038283048622276384,
            4795059587953974944,
        ];
        assert_eq!(draws(keyed(1, 2, 0, Purpose::EpochOrder), 3 << 62), known);
        assert_eq!(draws(keyed(1, 2, 3, Purpose::ShardOrder), 1), [0; 6]);
    }

    #[test]
    fn normals_have_the_right_moments() {
        let mut values = vec![0.0; 200_000];
        SampleRandom::new(3, 0, 0, Purpose::PosteriorNoise).fill_normal(&mut values);
        let count = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
        let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / count;
        let fourth = values.iter().map(|&v| f64::from(v).powi(4)).sum::<f64>() / count;
        assert!(mean.abs() < 0.01 && (square - 1.0).abs() < 0.015 && (fourth - 3.0).abs() < 0.1);
    }

    #[test]
    fn draws_depend_on_every_part_of_the_key() {
        let first = |seed, epoch, sample, purpose| SampleRandom::new(seed, epoch, sample, purpose).uniform();
        let base = first(1, 2, 3, Purpose::Flip);
        assert_eq!(base, first(1, 2, 3, Purpose::Flip));
        for other in [
            first(2, 2, 3, Purpose::Flip),
            first(1, 3, 3, Purpose::Flip),
            first(1, 2, 4, Purpose::Flip),
            first(1, 2, 3, Purpose::LabelDrop),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn permutations_hold_each_index_once() {
        let mut order = SampleRandom::new(1, 0, 0, Purpose::MaskOrder).permutation(100);
        assert_ne!(order[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<i64>>());
    }
}
