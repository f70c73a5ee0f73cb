use super::*;

const COUNTS: [u64; 10] = [30; 10];
const SIZES: [u64; 10] = [100; 10];

fn shuffle(window: u64) -> Shuffle {
    Shuffle::new(COUNTS, 3, window)
}

#[test]
fn a_cache_of_two_windows_fetches_every_shard_once_an_epoch() {
    for window in [1, 2, 5] {
        let fetched = egress(&shuffle(window), &SIZES, Some(2 * window * 100), 4);
        assert_eq!(fetched[0], 1000);
        // A shard that is still there from the end of the epoch before is not fetched again.
        assert!(fetched[1..].iter().all(|&bytes| (1000 - 2 * window * 100..=1000).contains(&bytes)), "{fetched:?}");
    }
}

#[test]
fn a_cache_of_everything_fetches_once_for_all_epochs() {
    for (window, limit) in [(0, None), (0, Some(1000)), (2, None), (2, Some(1000))] {
        assert_eq!(egress(&shuffle(window), &SIZES, limit, 3), [1000, 0, 0], "{window} {limit:?}");
    }
}

#[test]
fn a_larger_cache_never_fetches_more() {
    let mut before = u64::MAX;
    for limit in (400..=1000).step_by(100) {
        let fetched: u64 = egress(&shuffle(2), &SIZES, Some(limit), 6).iter().sum();
        assert!(fetched <= before, "{limit}: {fetched} after {before}");
        before = fetched;
    }
    assert_eq!(before, 1000);
}
