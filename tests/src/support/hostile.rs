//! Damage to a file, drawn at random by proptest, which also finds the smallest that fails.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestRunner};

/// One thing that happens to bytes. Places are taken modulo the length.
#[derive(Clone, Debug)]
pub enum Damage {
    /// One bit turns over.
    Flip { at: usize, bit: u8 },
    /// A byte becomes another.
    Set { at: usize, byte: u8 },
    /// The end is lost.
    Truncate { length: usize },
    /// A stretch becomes zeros or ones.
    Blank { at: usize, length: usize, byte: u8 },
    /// A stretch is lost.
    Remove { at: usize, length: usize },
    /// Foreign bytes come in.
    Insert { at: usize, bytes: Vec<u8> },
    /// A stretch stands where another belongs, too.
    Splice { from: usize, to: usize, length: usize },
    /// Two neighbouring stretches change places.
    Swap { at: usize, first: usize, second: usize },
}

impl Damage {
    /// The bytes after it.
    pub fn apply(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let end = bytes.len();
        if end == 0 {
            return bytes;
        }
        let stretch = |at: usize, length: usize| (at % end)..(at % end + length).min(end);
        match self {
            Self::Flip { at, bit } => bytes[at % end] ^= 1 << (bit % 8),
            Self::Set { at, byte } => bytes[at % end] = *byte,
            Self::Truncate { length } => bytes.truncate(length % end),
            Self::Blank { at, length, byte } => bytes[stretch(*at, *length)].fill(*byte),
            Self::Remove { at, length } => drop(bytes.drain(stretch(*at, *length))),
            Self::Insert { at, bytes: foreign } => drop(bytes.splice(at % end..at % end, foreign.iter().copied())),
            Self::Splice { from, to, length } => {
                let copy = bytes[stretch(*from, *length)].to_vec();
                let place = stretch(*to, copy.len());
                let copied = place.len();
                bytes[place].copy_from_slice(&copy[..copied]);
            }
            Self::Swap { at, first, second } => {
                let whole = stretch(*at, first + second);
                let middle = (*first).min(whole.len());
                bytes[whole].rotate_left(middle);
            }
        }
        bytes
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = any::<u32>().prop_map(|place| place as usize);
    let length = 1..64usize;
    let blank = prop_oneof![Just(0), Just(0xff), any::<u8>()];
    prop_oneof![
        4 => (place.clone(), 0..8u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        2 => (place.clone(), any::<u8>()).prop_map(|(at, byte)| Damage::Set { at, byte }),
        1 => place.clone().prop_map(|length| Damage::Truncate { length }),
        1 => (place.clone(), length.clone(), blank).prop_map(|(at, length, byte)| Damage::Blank { at, length, byte }),
        1 => (place.clone(), length.clone()).prop_map(|(at, length)| Damage::Remove { at, length }),
        1 => (place.clone(), prop::collection::vec(any::<u8>(), 1..16)).prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
        2 => (place.clone(), place.clone(), 1..512usize).prop_map(|(from, to, length)| Damage::Splice { from, to, length }),
        2 => (place, length.clone(), length).prop_map(|(at, first, second)| Damage::Swap { at, first, second }),
    ]
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Calls `check` with `count` damaged versions of `whole`, each damaged one to three times.
pub fn cases(count: u32, whole: &[u8], check: impl FnMut(&[u8])) {
    let config = Config {
        cases: count * setting("HOSTILE_TIMES", 1) as u32,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(setting("HOSTILE_SEED", 1)),
        failure_persistence: None,
        max_shrink_iters: 500,
        ..Config::default()
    };
    let check = RefCell::new(check);
    let several = prop::collection::vec(damage(), 1..=3);
    let run = TestRunner::new(config).run(&several, |several| {
        let damaged = several.iter().fold(whole.to_vec(), |bytes, damage| damage.apply(bytes));
        (check.borrow_mut())(&damaged);
        Ok(())
    });
    if let Err(failure) = run {
        panic!("{failure}");
    }
}
