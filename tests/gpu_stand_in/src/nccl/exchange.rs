//! Rounds: every rank shows all others a piece of data.

use std::{
    sync::atomic::{
        AtomicBool,
        Ordering::{Acquire, Release},
    },
    thread,
    time::{Duration, Instant},
};

use super::segment::{CHUNK, FACTS, Segment};

/// How often a waiting rank looks; and how often it looks whether those it waits for still live.
const LOOK_EVERY: Duration = Duration::from_micros(50);
const LOOK_FOR_THE_DEAD_EVERY: Duration = Duration::from_millis(20);
/// Looks before the first pause: the others are often nearly there.
const EAGER_LOOKS: usize = 100;

/// Why the ranks do not come together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The communicator was aborted.
    Aborted,
    /// A rank died, or left the communicator.
    Gone(usize),
    /// A rank made another call.
    Differs { rank: usize, here: [u64; FACTS], there: [u64; FACTS] },
}

/// Waits until `reached` holds for all ranks, or `gone` for the first for which it does not.
pub fn wait_for_all(
    world: usize,
    aborted: &AtomicBool,
    reached: impl Fn(usize) -> bool,
    gone: impl Fn(usize) -> bool,
) -> Result<(), Broken> {
    let (mut looks, mut looked) = (0, Instant::now());
    loop {
        let Some(missing) = (0..world).find(|rank| !reached(*rank)) else { return Ok(()) };
        if aborted.load(Acquire) {
            return Err(Broken::Aborted);
        }
        if looked.elapsed() > LOOK_FOR_THE_DEAD_EVERY {
            looked = Instant::now();
            // It may have done this round as its last.
            if gone(missing) && !reached(missing) {
                return Err(Broken::Gone(missing));
            }
        }
        looks += 1;
        if looks < EAGER_LOOKS { thread::yield_now() } else { thread::sleep(LOOK_EVERY) }
    }
}

/// Shows `bytes` bytes from `data`, none if it is null, waits for the others, and lets `read` use all buffers of the
/// round.
///
/// # Safety
/// `data` is null or valid for reading `bytes` bytes.
pub unsafe fn round(
    segment: &Segment,
    aborted: &AtomicBool,
    round: u64,
    facts: [u64; FACTS],
    (data, bytes): (*const u8, usize),
    read: impl FnOnce(),
) -> Result<(), Broken> {
    assert!(bytes <= CHUNK);
    // The buffer held the data of two rounds ago.
    let free = |rank| segment.slot(rank).consumed.load(Acquire) + 2 >= round;
    let gone = |rank| segment.is_gone(rank);
    wait_for_all(segment.world, aborted, free, gone)?;
    if !data.is_null() {
        // SAFETY: the caller promises `bytes` bytes at `data`, a buffer has `CHUNK`, and no rank reads this one: all
        // have consumed what was in it, and wait for `posted` before they read again.
        unsafe { segment.buffer(segment.rank, round).copy_from_nonoverlapping(data, bytes) };
    }
    segment.set_facts(round, facts);
    let mine = segment.slot(segment.rank);
    mine.posted.store(round, Release);
    wait_for_all(segment.world, aborted, |rank| segment.slot(rank).posted.load(Acquire) >= round, gone)?;
    let mut told = (0..segment.world).map(|rank| (rank, segment.facts(rank, round)));
    if let Some((rank, there)) = told.find(|(_, there)| *there != facts) {
        return Err(Broken::Differs { rank, here: facts, there });
    }
    read();
    mine.consumed.store(round, Release);
    Ok(())
}
