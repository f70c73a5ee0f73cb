//! The global order of samples, a pure function of seed and position.
//!
//! Each epoch is one permutation of the dataset (see [`crate::shuffle`]), and the epochs follow each other without a
//! gap: the global sequence g = 0, 1, 2, ... is epoch g / n, place g % n. Global batch k of G samples is g in
//! [k*G, (k+1)*G), whatever the number of ranks; an epoch that ends inside a batch goes on into the next, and nothing
//! is dropped.

use crate::error::DataError;
use crate::read::shuffle::{Shuffle, Window};

/// How ranks share a global batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// Samples of a global batch.
    pub global_batch: usize,
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Samples a rank takes at a time.
    pub micro_batch: usize,
}

impl Sharing {
    /// Micro-batches each rank takes from a global batch.
    ///
    /// # Errors
    /// [`DataError::Batch`] with numbers that work, when the ranks cannot share the batch evenly.
    pub fn accumulation(&self) -> Result<usize, DataError> {
        let Self { global_batch, rank, world, micro_batch } = *self;
        if global_batch == 0 || micro_batch == 0 || world == 0 || rank >= world {
            return Err(DataError::Batch(format!(
                "rank {rank} of {world} cannot take micro-batches of {micro_batch} from a global batch of {global_batch}; \
                 all must be at least 1"
            )));
        }
        let together = world * micro_batch;
        if global_batch % together == 0 {
            return Ok(global_batch / together);
        }
        let below = global_batch / together * together;
        let choices = match below {
            0 => format!("{together}"),
            below => format!("{below} or {}", below + together),
        };
        Err(DataError::Batch(format!(
            "global batch {global_batch} is not divisible by {world} ranks x micro-batch {micro_batch}; use {choices}"
        )))
    }

    /// First place in the global sequence of a rank's micro-batch, counted over all its micro-batches.
    fn start_of(&self, micro_batches: u64, accumulation: u64) -> u64 {
        let (batch, part) = (micro_batches / accumulation, micro_batches % accumulation);
        let together = (self.world * self.micro_batch) as u64;
        batch * self.global_batch as u64 + part * together + (self.rank * self.micro_batch) as u64
    }
}

/// One place in the global sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The epoch.
    pub epoch: u64,
    /// Number of the window of shards it lies in, counted over all epochs.
    pub window: u64,
    /// Index of the sample in the dataset.
    pub sample: u64,
}

/// Walks over a rank's micro-batches. The order of the window it is in is kept.
#[derive(Debug)]
pub struct MicroBatches {
    shuffle: Shuffle,
    sharing: Sharing,
    accumulation: u64,
    first_place: u64,
    micro_batches: u64,
    epoch: Option<(u64, Vec<Window>)>,
    window: Option<(u64, Vec<u32>)>,
}

impl MicroBatches {
    /// The micro-batches of a dataset in the order of `shuffle`, from place `first_place` of the global sequence.
    ///
    /// # Errors
    /// As [`Sharing::accumulation`].
    pub fn new(shuffle: Shuffle, sharing: Sharing, first_place: u64) -> Result<Self, DataError> {
        let accumulation = sharing.accumulation()? as u64;
        Ok(Self { shuffle, sharing, accumulation, first_place, micro_batches: 0, epoch: None, window: None })
    }

    /// Places of the rank's next micro-batch.
    pub fn next_places(&mut self) -> Vec<Place> {
        let start = self.first_place + self.sharing.start_of(self.micro_batches, self.accumulation);
        self.micro_batches += 1;
        (start..start + self.sharing.micro_batch as u64).map(|place| self.place(place)).collect()
    }

    fn place(&mut self, place: u64) -> Place {
        let (epoch, index) = (place / self.shuffle.samples(), place % self.shuffle.samples());
        let windows = match self.epoch.take() {
            Some((current, windows)) if current == epoch => windows,
            _ => self.shuffle.epoch(epoch),
        };
        let window = &windows[windows.partition_point(|window| window.first <= index) - 1];
        let order = match self.window.take() {
            Some((number, order)) if number == window.number => order,
            _ => self.shuffle.order(window),
        };
        let sample = u64::from(order[(index - window.first) as usize]);
        let number = window.number;
        self.window = Some((number, order));
        self.epoch = Some((epoch, windows));
        Place { epoch, window: number, sample }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(samples: usize, sharing: Sharing, first: u64, count: usize) -> Vec<Place> {
        let mut batches = MicroBatches::new(Shuffle::new([samples as u64], 9, 0), sharing, first).expect("sharing");
        (0..count).flat_map(|_| batches.next_places()).collect()
    }

    #[test]
    fn a_batch_the_ranks_cannot_share_names_ones_they_can() {
        let sharing = Sharing { global_batch: 250, rank: 0, world: 8, micro_batch: 1 };
        let error = sharing.accumulation().expect_err("not divisible").to_string();
        assert!(error.contains("use 248 or 256"), "{error}");
        // None is less than what the ranks take together.
        let sharing = Sharing { global_batch: 5, rank: 7, world: 8, micro_batch: 2 };
        let error = sharing.accumulation().expect_err("not divisible").to_string();
        assert!(error.ends_with("8 ranks x micro-batch 2; use 16"), "{error}");
    }

    #[test]
    fn a_batch_the_ranks_can_share_is_cut_evenly() {
        let sharing = Sharing { global_batch: 24, rank: 1, world: 2, micro_batch: 3 };
        assert_eq!(sharing.accumulation().expect("sharing"), 4);
        for nonsense in [
            Sharing { global_batch: 0, ..sharing },
            Sharing { micro_batch: 0, ..sharing },
            Sharing { world: 0, ..sharing },
            Sharing { rank: 2, ..sharing },
            Sharing { rank: 3, ..sharing },
        ] {
            let error = nonsense.accumulation().expect_err("nonsense").to_string();
            assert!(error.contains("all must be at least 1"), "{error}");
        }
    }

    #[test]
    fn ranks_take_turns_within_a_batch() {
        let starts = |rank| -> Vec<u64> {
            let sharing = Sharing { global_batch: 24, rank, world: 2, micro_batch: 3 };
            (0..9).map(|micro_batches| sharing.start_of(micro_batches, 4)).collect()
        };
        assert_eq!(starts(0), [0, 6, 12, 18, 24, 30, 36, 42, 48]);
        assert_eq!(starts(1), [3, 9, 15, 21, 27, 33, 39, 45, 51]);
    }

    #[test]
    fn every_place_knows_its_epoch_and_its_window() {
        // Two windows of 3 shards each, and one of a single shard, in an epoch of 48.
        let shuffle = Shuffle::new([10, 3, 8, 1, 12, 5, 9], 9, 3);
        let sharing = Sharing { global_batch: 4, rank: 0, world: 1, micro_batch: 4 };
        let mut batches = MicroBatches::new(shuffle.clone(), sharing, 0).expect("sharing");
        for place in 0..144 / 4 {
            for (found, place) in batches.next_places().into_iter().zip(4 * place..) {
                let window = shuffle.window_at(found.window).expect("a window");
                assert_eq!((found.epoch, found.window), (place / 48, shuffle.window_of(place)));
                assert_eq!(found.sample, u64::from(shuffle.order(&window)[(place % 48 - window.first) as usize]));
            }
        }
    }

    #[test]
    fn starting_later_gives_the_rest_of_the_same_sequence() {
        let sharing = Sharing { global_batch: 6, rank: 0, world: 1, micro_batch: 3 };
        let whole = places(10, sharing, 0, 20);
        assert_eq!(places(10, sharing, 12, 16), whole[12..]);
    }
}
