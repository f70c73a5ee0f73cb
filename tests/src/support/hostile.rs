//! Random damage to files, generated and shrunk to a minimal failing case by proptest.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestRunner};

/// One modification of a byte string. Offsets are taken modulo the length.
#[derive(Clone, Debug)]
pub enum Damage {
    /// One bit is flipped.
    Flip { at: usize, bit: u8 },
    /// A byte is overwritten.
    Set { at: usize, byte: u8 },
    /// The end is cut off.
    Truncate { length: usize },
    /// A range is filled with one byte.
    Blank { at: usize, length: usize, byte: u8 },
    /// A range is removed.
    Remove { at: usize, length: usize },
    /// Foreign bytes are inserted.
    Insert { at: usize, bytes: Vec<u8> },
    /// A range is overwritten by a copy of another.
    Splice { from: usize, to: usize, length: usize },
    /// Two adjacent ranges are swapped.
    Swap { at: usize, first: usize, second: usize },
}

impl Damage {
    /// Returns the damaged bytes.
    pub fn apply(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let end = bytes.len();
        if end == 0 {
            return bytes;
        }
        let range = |at: usize, length: usize| (at % end)..(at % end + length).min(end);
        match self {
            Self::Flip { at, bit } => bytes[at % end] ^= 1 << (bit % 8),
            Self::Set { at, byte } => bytes[at % end] = *byte,
            Self::Truncate { length } => bytes.truncate(length % end),
            Self::Blank { at, length, byte } => bytes[range(*at, *length)].fill(*byte),
            Self::Remove { at, length } => drop(bytes.drain(range(*at, *length))),
            Self::Insert { at, bytes: foreign } => drop(bytes.splice(at % end..at % end, foreign.iter().copied())),
            Self::Splice { from, to, length } => {
                let copy = bytes[range(*from, *length)].to_vec();
                let target = range(*to, copy.len());
                let copied = target.len();
                bytes[target].copy_from_slice(&copy[..copied]);
            }
            Self::Swap { at, first, second } => {
                let whole = range(*at, first + second);
                let middle = (*first).min(whole.len());
                bytes[whole].rotate_left(middle);
            }
        }
        bytes
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let offset = any::<u32>().prop_map(|offset| offset as usize);
    let length = 1..64usize;
    let blank = prop_oneof![Just(0), Just(0xff), any::<u8>()];
    prop_oneof![
        4 => (offset.clone(), 0..8u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        2 => (offset.clone(), any::<u8>()).prop_map(|(at, byte)| Damage::Set { at, byte }),
        1 => offset.clone().prop_map(|length| Damage::Truncate { length }),
        1 => (offset.clone(), length.clone(), blank).prop_map(|(at, length, byte)| Damage::Blank { at, length, byte }),
        1 => (offset.clone(), length.clone()).prop_map(|(at, length)| Damage::Remove { at, length }),
        1 => (offset.clone(), prop::collection::vec(any::<u8>(), 1..16))
            .prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
        2 => (offset.clone(), offset.clone(), 1..512usize)
            .prop_map(|(from, to, length)| Damage::Splice { from, to, length }),
        2 => (offset, length.clone(), length).prop_map(|(at, first, second)| Damage::Swap { at, first, second }),
    ]
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Calls `check` with `count` damaged versions of `whole`, each with one to three modifications.
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
