//! The global order: the same samples in the same batches for any number of ranks, each once per epoch.

#![allow(clippy::unwrap_used)]

use arinar_data::read::{BatchLayout, MicroBatches, ScheduledSample, Shuffle};

const WORLDS: [usize; 4] = [1, 2, 3, 4];

/// Shards of 1 to 9 samples.
fn shuffle(samples: usize, seed: u64, window: u64) -> Shuffle {
    let mut left = samples as u64;
    let counts = (1..=9).cycle().map_while(|count| {
        let count = left.min(count);
        left -= count;
        (count > 0).then_some(count)
    });
    Shuffle::new(counts, seed, window)
}

/// The first `batches` global batches as `world` ranks see them together, each in the order of its places.
fn global_batches(
    (samples, seed, window): (usize, u64, u64),
    global: usize,
    world: usize,
    batches: usize,
) -> Vec<Vec<ScheduledSample>> {
    // All ways to cut a rank's part in micro-batches must agree; take the smallest.
    let micro_batch = 1;
    let accumulation = global / world;
    let mut ranks: Vec<_> = (0..world)
        .map(|rank| {
            let layout = BatchLayout::new(global, rank, world, micro_batch).unwrap();
            MicroBatches::new(shuffle(samples, seed, window), layout, 0)
        })
        .collect();
    (0..batches)
        .map(|_| {
            (0..accumulation)
                .flat_map(|_| ranks.iter_mut().flat_map(MicroBatches::next_samples).collect::<Vec<_>>())
                .collect()
        })
        .collect()
}

#[test]
fn every_world_sees_the_same_global_batches_in_the_same_order() {
    for order in [(100, 1, 0), (7, 2, 1), (12, 3, 0), (1, 4, 0), (1906, 5, 0), (1906, 5, 3), (100, 1, 4)] {
        let one = global_batches(order, 12, 1, 30);
        for world in WORLDS {
            assert_eq!(global_batches(order, 12, world, 30), one, "{order:?}, {world} ranks");
        }
    }
}

#[test]
fn each_sample_comes_once_per_epoch_and_nothing_is_dropped() {
    for (samples, seed, window) in [(100, 1, 0), (7, 2, 1), (12, 3, 0), (97, 4, 2), (97, 4, 5)] {
        for world in WORLDS {
            let batches = global_batches((samples, seed, window), 12, world, samples);
            let places: Vec<ScheduledSample> = batches.into_iter().flatten().collect();
            for (epoch, places) in places.chunks_exact(samples).enumerate() {
                assert!(places.iter().all(|place| place.epoch == epoch as u64));
                let mut seen: Vec<u64> = places.iter().map(|place| place.sample).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..samples as u64).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn micro_batches_cut_a_global_batch_without_changing_it() {
    let places = |world: usize, micro_batch: usize| {
        let mut all = Vec::new();
        let mut ranks: Vec<_> = (0..world)
            .map(|rank| {
                let layout = BatchLayout::new(24, rank, world, micro_batch).unwrap();
                MicroBatches::new(shuffle(50, 8, 2), layout, 0)
            })
            .collect();
        for _ in 0..5 * 24 / (world * micro_batch) {
            ranks.iter_mut().for_each(|rank| all.extend(rank.next_samples()));
        }
        all
    };
    let whole = places(1, 24);
    for (world, micro_batch) in [(1, 1), (1, 8), (2, 12), (2, 3), (3, 4), (4, 6), (4, 2)] {
        assert_eq!(places(world, micro_batch), whole, "{world} ranks, micro-batch {micro_batch}");
    }
}

#[test]
fn epochs_and_seeds_have_different_orders() {
    let order = |seed, window, epoch: usize| -> Vec<u64> {
        let batches = global_batches((40, seed, window), 40, 1, epoch + 1);
        batches[epoch].iter().map(|place| place.sample).collect()
    };
    for window in [0, 3] {
        assert_ne!(order(1, window, 0), order(1, window, 1));
        assert_ne!(order(1, window, 0), order(2, window, 0));
        assert_ne!(order(1, window, 0), (0..40).collect::<Vec<_>>());
    }
    assert_ne!(order(1, 0, 0), order(1, 3, 0));
}
