//! The global order of samples, a pure function of the seed and the position.
//!
//! Each epoch is one permutation of the dataset (see [`crate::read::shuffle`]), and epochs follow each other without a
//! gap: element g = 0, 1, 2, ... of the global sequence belongs to epoch g / n, where it is element g % n. Global batch
//! k of G samples covers [k*G, (k+1)*G) for any number of ranks. An epoch that ends inside a batch continues into the
//! next epoch, and no sample is dropped.

use crate::read::batch_layout::BatchLayout;
use crate::read::shuffle::{Shuffle, Window};

/// One element of the global sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledSample {
    /// Epoch.
    pub epoch: u64,
    /// Number of its window of shards, counted over all epochs.
    pub window: u64,
    /// Index of the sample in the dataset.
    pub sample: u64,
}

/// An iterator over a rank's micro-batches. It caches the order of the current window.
#[derive(Debug)]
pub struct MicroBatches {
    shuffle: Shuffle,
    layout: BatchLayout,
    start: u64,
    micro_batches: u64,
    epoch: Option<(u64, Vec<Window>)>,
    window: Option<(u64, Vec<u32>)>,
}

impl MicroBatches {
    /// Iterates over a dataset in the order of `shuffle`, from position `start` of the global sequence.
    pub fn new(shuffle: Shuffle, layout: BatchLayout, start: u64) -> Self {
        Self { shuffle, layout, start, micro_batches: 0, epoch: None, window: None }
    }

    /// Returns the samples of the rank's next micro-batch.
    pub fn next_samples(&mut self) -> Vec<ScheduledSample> {
        let first = self.start + self.layout.start_of(self.micro_batches);
        self.micro_batches += 1;
        (first..first + self.layout.micro_batch() as u64).map(|position| self.sample_at(position)).collect()
    }

    fn sample_at(&mut self, position: u64) -> ScheduledSample {
        let (epoch, index) = (position / self.shuffle.samples(), position % self.shuffle.samples());
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
        ScheduledSample { epoch, window: number, sample }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_rank(global_batch: usize, micro_batch: usize) -> BatchLayout {
        BatchLayout::new(global_batch, 0, 1, micro_batch).expect("a layout")
    }

    #[test]
    fn every_sample_has_its_epoch_and_its_window() {
        // An epoch of 48 samples has two windows of 3 shards each and one of a single shard.
        let shuffle = Shuffle::new([10, 3, 8, 1, 12, 5, 9], 9, 3);
        let mut batches = MicroBatches::new(shuffle.clone(), one_rank(4, 4), 0);
        for batch in 0..144 / 4 {
            for (found, position) in batches.next_samples().into_iter().zip(4 * batch..) {
                let window = shuffle.window_at(found.window).expect("a window");
                assert_eq!((found.epoch, found.window), (position / 48, shuffle.window_of(position)));
                assert_eq!(found.sample, u64::from(shuffle.order(&window)[(position % 48 - window.first) as usize]));
            }
        }
    }

    #[test]
    fn starting_later_gives_the_rest_of_the_same_sequence() {
        let samples = |start, count| -> Vec<ScheduledSample> {
            let mut batches = MicroBatches::new(Shuffle::new([10], 9, 0), one_rank(6, 3), start);
            (0..count).flat_map(|_| batches.next_samples()).collect()
        };
        assert_eq!(samples(12, 16), samples(0, 20)[12..]);
    }
}
