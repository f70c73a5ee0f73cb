//! The shuffle of an epoch: global, or in windows of shards if the dataset is larger than the cache.
//!
//! Each epoch permutes the shards, divides the permutation into windows of `window` shards, and shuffles the samples of
//! each window together; a window of 0 shuffles the whole dataset. The order is a pure function of (seed, epoch), so
//! that all ranks of any world size see the same sequence, and the shards of the next window are known in advance.

use crate::random::{Purpose, global_order, window_order};

/// The order of a dataset's samples in every epoch.
#[derive(Clone, Debug)]
pub struct Shuffle {
    seed: u64,
    window: usize,
    /// Index of each shard's first sample; one entry more than there are shards.
    starts: Vec<u64>,
}

/// A group of shards whose samples are shuffled together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Number of the window, counted over all epochs.
    pub number: u64,
    /// Epoch.
    pub epoch: u64,
    /// Position of its first sample in the epoch.
    pub first: u64,
    /// Shards in the order in which they are fetched.
    pub shards: Vec<usize>,
}

impl Shuffle {
    /// Creates the order of shards with `counts` samples each, of which `window` (0 for all) are shuffled together.
    pub fn new(counts: impl IntoIterator<Item = u64>, seed: u64, window: u64) -> Self {
        let mut starts = vec![0];
        starts.extend(counts.into_iter().scan(0, |end, count| {
            *end += count;
            Some(*end)
        }));
        Self { seed, window: usize::try_from(window).unwrap_or(usize::MAX), starts }
    }

    /// Number of samples in an epoch.
    pub fn samples(&self) -> u64 {
        self.starts[self.shards()]
    }

    /// Seed of the order.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Number of shards shuffled together; 0 stands for a global shuffle.
    pub fn window(&self) -> u64 {
        self.window as u64
    }

    /// Number of windows in an epoch.
    pub fn windows_per_epoch(&self) -> u64 {
        if self.window == 0 { 1 } else { self.shards().div_ceil(self.window).max(1) as u64 }
    }

    /// Returns the windows of an epoch in order.
    pub fn epoch(&self, epoch: u64) -> Vec<Window> {
        let first_number = epoch * self.windows_per_epoch();
        if self.window == 0 {
            return vec![Window { number: first_number, epoch, first: 0, shards: (0..self.shards()).collect() }];
        }
        let order = global_order(self.seed, epoch, Purpose::ShardWindows, self.shards());
        let mut first = 0;
        let mut windows = Vec::new();
        for (number, shards) in (first_number..).zip(order.chunks(self.window)) {
            let shards: Vec<usize> = shards.iter().map(|&shard| shard as usize).collect();
            let samples: u64 = shards.iter().map(|&shard| self.count(shard)).sum();
            windows.push(Window { number, epoch, first, shards });
            first += samples;
        }
        windows
    }

    /// Returns the window with this number.
    pub fn window_at(&self, number: u64) -> Option<Window> {
        let (epoch, index) = (number / self.windows_per_epoch(), number % self.windows_per_epoch());
        self.epoch(epoch).into_iter().nth(index as usize)
    }

    /// Returns the number of the window that contains a position of the global sequence.
    pub fn window_of(&self, position: u64) -> u64 {
        let (epoch, index) = (position / self.samples(), position % self.samples());
        let windows = self.epoch(epoch);
        windows[windows.partition_point(|window| window.first <= index) - 1].number
    }

    /// Returns the samples of a window, as indices in the dataset, in shuffled order.
    pub fn order(&self, window: &Window) -> Vec<u32> {
        if self.window == 0 {
            return global_order(self.seed, window.epoch, Purpose::EpochOrder, self.samples() as usize);
        }
        let samples = window.shards.iter().flat_map(|&shard| self.starts[shard]..self.starts[shard + 1]);
        let within = window.number % self.windows_per_epoch();
        window_order(self.seed, window.epoch, within, samples.map(|sample| sample as u32).collect())
    }

    /// Returns for each shard the number of the first window from number `from` that needs it, up to the end of the
    /// next epoch, and `u64::MAX` if there is none.
    pub fn next_uses(&self, from: u64) -> Vec<u64> {
        let mut uses = vec![u64::MAX; self.shards()];
        let epoch = from / self.windows_per_epoch();
        for window in self.epoch(epoch).into_iter().chain(self.epoch(epoch + 1)) {
            for &shard in window.shards.iter().filter(|_| window.number >= from) {
                uses[shard] = uses[shard].min(window.number);
            }
        }
        uses
    }

    fn shards(&self) -> usize {
        self.starts.len() - 1
    }

    fn count(&self, shard: usize) -> u64 {
        self.starts[shard + 1] - self.starts[shard]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTS: [u64; 7] = [10, 3, 8, 1, 12, 5, 9];

    #[test]
    fn every_window_holds_the_samples_of_its_shards_once() {
        for window in [1, 2, 3, 7, 100] {
            let shuffle = Shuffle::new(COUNTS, 4, window);
            for epoch in 0..3 {
                let windows = shuffle.epoch(epoch);
                assert_eq!(windows.len() as u64, shuffle.windows_per_epoch());
                let mut seen = Vec::new();
                for window in &windows {
                    assert_eq!(window.first, seen.len() as u64);
                    assert_eq!(shuffle.window_at(window.number).as_ref(), Some(window));
                    let order = shuffle.order(window);
                    let of_shards = |sample: &u32| {
                        let shard = shuffle.starts.partition_point(|&start| start <= u64::from(*sample)) - 1;
                        window.shards.contains(&shard)
                    };
                    assert!(order.iter().all(of_shards));
                    seen.extend(order);
                }
                seen.sort_unstable();
                assert_eq!(seen, (0..48).collect::<Vec<u32>>());
            }
        }
    }

    #[test]
    fn positions_are_in_the_windows_that_epochs_are_made_of() {
        for window in [0, 1, 3, 7] {
            let shuffle = Shuffle::new(COUNTS, 4, window);
            let mut position = 0;
            for (number, window) in (0..3).flat_map(|epoch| shuffle.epoch(epoch)).enumerate() {
                assert_eq!(window.number, number as u64);
                for _ in shuffle.order(&window) {
                    assert_eq!(shuffle.window_of(position), window.number, "position {position}");
                    position += 1;
                }
            }
            assert_eq!(position, 3 * 48);
        }
    }

    #[test]
    fn a_shuffle_knows_how_it_was_made() {
        let windows = [0, 1, 3, 7, 100, u64::MAX].map(|window| {
            let shuffle = Shuffle::new(COUNTS, 4, window);
            assert_eq!((shuffle.seed(), shuffle.window(), shuffle.samples()), (4, window, 48));
            shuffle.windows_per_epoch()
        });
        assert_eq!(windows, [1, 7, 3, 1, 1, 1]);
        // There is always one window, even if it is empty.
        assert_eq!(Shuffle::new([], 4, 3).windows_per_epoch(), 1);
    }

    #[test]
    fn the_order_of_shards_never_changes() {
        // Computed with ChaCha8 in Python, like the numbers in random.rs.
        let shards = |window| -> Vec<Vec<usize>> {
            Shuffle::new([10; 5], 1, window).epoch(2).into_iter().map(|window| window.shards).collect()
        };
        assert_eq!(shards(2), [vec![1, 2], vec![0, 3], vec![4]]);
        assert_eq!(shards(0), [vec![0, 1, 2, 3, 4]]);
    }

    #[test]
    fn epochs_and_windows_are_shuffled_differently() {
        let shuffle = Shuffle::new([50; 6], 4, 2);
        let [first, second] = [0, 1].map(|epoch| shuffle.epoch(epoch));
        assert_ne!(first[0].shards, second[0].shards);
        let relative = |window: &Window| -> Vec<u32> {
            let order = shuffle.order(window);
            order.iter().map(|sample| sample % 50).collect()
        };
        assert_ne!(relative(&first[0]), relative(&first[1]));
        assert_ne!(relative(&first[0]), (0..50).chain(0..50).collect::<Vec<_>>());
    }

    #[test]
    fn the_next_use_of_every_shard_is_known() {
        let shuffle = Shuffle::new(COUNTS, 4, 2);
        let (first, second) = (shuffle.epoch(0), shuffle.epoch(1));
        let uses = shuffle.next_uses(2);
        for window in &first[2..] {
            assert!(window.shards.iter().all(|&shard| uses[shard] == window.number));
        }
        for window in &second {
            let used_before = |shard: &&usize| first[2..].iter().any(|earlier| earlier.shards.contains(shard));
            assert!(
                window.shards.iter().filter(|shard| !used_before(shard)).all(|&shard| uses[shard] == window.number)
            );
        }
        // In any epoch, and up to the end of the next one.
        let of_epoch_4 = shuffle.next_uses(17);
        for (shard, found) in of_epoch_4.into_iter().enumerate() {
            let later = (17..24).find(|&number| shuffle.window_at(number).is_some_and(|w| w.shards.contains(&shard)));
            assert_eq!(Some(found), later, "shard {shard}");
        }
    }
}
