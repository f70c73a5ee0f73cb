//! Tests of the global sample order: any number of ranks reads the same batches, with each sample once per epoch.

#![allow(clippy::unwrap_used)]

use arinar_data::read::{BatchLayout, MicroBatches, ScheduledSample, Shuffle};

const WORLDS: [usize; 4] = [1, 2, 3, 4];

/// Returns a shuffle over shards of 1 to 9 samples.
fn shuffle(samples: usize, seed: u64, window: u64) -> Shuffle {
    let mut left = samples as u64;
    let counts = (1..=9).cycle().map_while(|count| {
        let count = left.min(count);
        left -= count;
        (count > 0).then_some(count)
    });
    Shuffle::new(counts, seed, window)
}

/// Returns the first `batches` global batches as read by `world` ranks together, each in batch order.
fn global_batches(
    (samples, seed, window): (usize, u64, u64),
    global: usize,
    world: usize,
    batches: usize,
) -> Vec<Vec<ScheduledSample>> {
    // Every micro-batch size must give the same order; use the smallest.
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
fn the_order_is_the_same_for_every_world_size() {
    for order in [(100, 1, 0), (7, 2, 1), (12, 3, 0), (1, 4, 0), (1906, 5, 0), (1906, 5, 3), (100, 1, 4)] {
        let one = global_batches(order, 12, 1, 30);
        for world in WORLDS {
            assert_eq!(global_batches(order, 12, world, 30), one, "{order:?}, {world} ranks");
        }
    }
}

#[test]
fn every_sample_appears_once_per_epoch() {
    for (samples, seed, window) in [(100, 1, 0), (7, 2, 1), (12, 3, 0), (97, 4, 2), (97, 4, 5)] {
        for world in WORLDS {
            let batches = global_batches((samples, seed, window), 12, world, samples);
            let scheduled: Vec<ScheduledSample> = batches.into_iter().flatten().collect();
            for (epoch, scheduled) in scheduled.chunks_exact(samples).enumerate() {
                assert!(scheduled.iter().all(|entry| entry.epoch == epoch as u64));
                let mut seen: Vec<u64> = scheduled.iter().map(|entry| entry.sample).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..samples as u64).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn the_micro_batch_size_does_not_change_the_order() {
    let order = |world: usize, micro_batch: usize| {
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
    let expected = order(1, 24);
    for (world, micro_batch) in [(1, 1), (1, 8), (2, 12), (2, 3), (3, 4), (4, 6), (4, 2)] {
        assert_eq!(order(world, micro_batch), expected, "{world} ranks, micro-batch {micro_batch}");
    }
}

#[test]
fn epochs_and_seeds_have_different_orders() {
    let order = |seed, window, epoch: usize| -> Vec<u64> {
        let batches = global_batches((40, seed, window), 40, 1, epoch + 1);
        batches[epoch].iter().map(|entry| entry.sample).collect()
    };
    for window in [0, 3] {
        assert_ne!(order(1, window, 0), order(1, window, 1));
        assert_ne!(order(1, window, 0), order(2, window, 0));
        assert_ne!(order(1, window, 0), (0..40).collect::<Vec<_>>());
    }
    assert_ne!(order(1, 0, 0), order(1, 3, 0));
}
