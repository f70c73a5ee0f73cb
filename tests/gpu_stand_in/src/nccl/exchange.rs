//! Rounds of data exchange, in each of which every rank publishes a chunk of data to all others.

use std::{
    sync::atomic::{
        AtomicBool,
        Ordering::{Acquire, Release},
    },
    thread,
    time::{Duration, Instant},
};

use super::segment::{CHUNK, FACTS, Segment};

/// Interval at which a waiting rank polls.
const POLL_INTERVAL: Duration = Duration::from_micros(50);
/// Interval at which a waiting rank checks whether the others are alive.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(20);
/// Number of polls before the first pause, since the other ranks are often nearly ready.
const EAGER_POLLS: usize = 100;

/// The reason for which an exchange broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The communicator was aborted.
    Aborted,
    /// A rank died or left the communicator.
    Gone(usize),
    /// A rank made a different call.
    Differs { rank: usize, here: [u64; FACTS], there: [u64; FACTS] },
}

/// Waits until `reached` holds for all ranks, or `gone` for the first rank for which it does not.
pub(crate) fn wait_for_all(
    world: usize,
    aborted: &AtomicBool,
    reached: impl Fn(usize) -> bool,
    gone: impl Fn(usize) -> bool,
) -> Result<(), Broken> {
    let (mut polls, mut last_check) = (0, Instant::now());
    loop {
        let Some(missing) = (0..world).find(|rank| !reached(*rank)) else { return Ok(()) };
        if aborted.load(Acquire) {
            return Err(Broken::Aborted);
        }
        if last_check.elapsed() > LIVENESS_INTERVAL {
            last_check = Instant::now();
            // The rank may have left after it completed this round.
            if gone(missing) && !reached(missing) {
                return Err(Broken::Gone(missing));
            }
        }
        polls += 1;
        if polls < EAGER_POLLS { thread::yield_now() } else { thread::sleep(POLL_INTERVAL) }
    }
}

/// Publishes `bytes` bytes from `data`, or none if it is null, waits for the other ranks, and calls `read` to use all
/// buffers of the round.
///
/// # Safety
/// `data` must be null or valid for reading `bytes` bytes.
pub(crate) unsafe fn round(
    segment: &Segment,
    aborted: &AtomicBool,
    round: u64,
    facts: [u64; FACTS],
    (data, bytes): (*const u8, usize),
    read: impl FnOnce(),
) -> Result<(), Broken> {
    assert!(bytes <= CHUNK);
    // The buffer holds the data of two rounds ago.
    let free = |rank| segment.slot(rank).consumed.load(Acquire) + 2 >= round;
    let gone = |rank| segment.is_gone(rank);
    wait_for_all(segment.world, aborted, free, gone)?;
    if !data.is_null() {
        // SAFETY: the caller guarantees `bytes` bytes at `data`, a buffer has `CHUNK` bytes, and no rank reads this
        // one: all have consumed its data and wait for `posted` before they read again.
        unsafe { segment.buffer(segment.rank, round).copy_from_nonoverlapping(data, bytes) };
    }
    segment.set_facts(round, facts);
    let mine = segment.slot(segment.rank);
    mine.posted.store(round, Release);
    wait_for_all(segment.world, aborted, |rank| segment.slot(rank).posted.load(Acquire) >= round, gone)?;
    let mut calls = (0..segment.world).map(|rank| (rank, segment.facts(rank, round)));
    if let Some((rank, there)) = calls.find(|(_, there)| *there != facts) {
        return Err(Broken::Differs { rank, here: facts, there });
    }
    read();
    mine.consumed.store(round, Release);
    Ok(())
}
