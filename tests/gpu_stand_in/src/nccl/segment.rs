//! The memory that the ranks of a communicator share: for each rank its identity, its progress and two buffers, so that
//! one can be written while the other is being read.

use std::{
    fs::File,
    io,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::{
    process::Process,
    result::{
        Failure,
        NcclResult::{InvalidUsage, SystemError},
    },
};

/// Maximum number of ranks of a communicator.
pub(crate) const MAX_RANKS: usize = 64;
/// Size of a buffer in bytes. Memory that no rank touches is never allocated.
pub(crate) const CHUNK: usize = 256 << 10;
/// Number of properties of a call that ranks compare.
pub(crate) const FACTS: usize = 5;

/// A rank's slot. All zeros mean a rank that has not joined.
#[repr(C, align(64))]
pub(crate) struct Slot {
    pid: AtomicU32,
    presence: AtomicU32,
    start_time: AtomicU64,
    /// Number of the last round whose data is in the buffer.
    pub(crate) posted: AtomicU64,
    /// Number of the last round of which the rank has read all buffers.
    pub(crate) consumed: AtomicU64,
    facts: [[AtomicU64; FACTS]; 2],
}

const ABSENT: u32 = 0;
const JOINED: u32 = 1;
const LEFT: u32 = 2;

#[repr(C, align(64))]
struct Layout {
    /// Number of ranks, set by the first rank that joins.
    world: AtomicU32,
    slots: [Slot; MAX_RANKS],
}

const HEAD: usize = size_of::<Layout>().next_multiple_of(4096);
const LENGTH: usize = HEAD + MAX_RANKS * 2 * CHUNK;

/// Creates shared memory filled with zeros.
pub(crate) fn create() -> io::Result<File> {
    let file = memfd_create("arinar-stand-in", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, LENGTH as u64)?;
    // Seal the size, so that no rank can truncate memory that another has mapped.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(file.into())
}

/// One rank's view of the shared memory.
#[derive(Debug)]
pub(crate) struct Segment {
    memory: MmapRaw,
    pub(crate) rank: usize,
    pub(crate) world: usize,
}

impl Segment {
    /// Maps the memory and claims the rank's slot.
    ///
    /// # Errors
    /// Fails if the memory cannot be mapped, the ranks have different world sizes, or the slot is taken.
    pub(crate) fn join(file: &File, rank: usize, world: usize) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(SystemError, format!("shared memory: {error}"));
        if file.metadata().map_err(failed)?.len() != LENGTH as u64 {
            return Err(Failure::new(SystemError, "the shared memory belongs to another version of this library"));
        }
        let memory = MmapOptions::new().len(LENGTH).map_raw(file).map_err(failed)?;
        let segment = Self { memory, rank, world };
        let mine = world as u32;
        if let Err(theirs) = segment.layout().world.compare_exchange(0, mine, Release, Acquire)
            && theirs != mine
        {
            let message = format!("rank {rank} expects {mine} ranks, but another rank expects {theirs}");
            return Err(Failure::new(InvalidUsage, message));
        }
        let this = Process::this();
        let slot = segment.slot(rank);
        if slot.pid.compare_exchange(0, this.pid, Relaxed, Relaxed).is_err() {
            return Err(Failure::new(InvalidUsage, format!("two processes are rank {rank}")));
        }
        slot.start_time.store(this.start_time, Relaxed);
        slot.presence.store(JOINED, Release);
        Ok(segment)
    }

    fn layout(&self) -> &Layout {
        // SAFETY: the mapping is page-aligned, longer than a `Layout`, and lives as long as `self`. It contains only
        // atomics, which other processes may change at any time, and every bit pattern is valid.
        unsafe { &*self.memory.as_mut_ptr().cast::<Layout>() }
    }

    pub(crate) fn slot(&self, rank: usize) -> &Slot {
        &self.layout().slots[rank]
    }

    /// Returns the rank's buffer of a round: [`CHUNK`] bytes, aligned for every element type.
    pub(crate) fn buffer(&self, rank: usize, round: u64) -> *mut u8 {
        assert!(rank < MAX_RANKS);
        let offset = HEAD + (2 * rank + (round % 2) as usize) * CHUNK;
        // SAFETY: `offset + CHUNK` is at most `LENGTH`, the length of the mapping.
        unsafe { self.memory.as_mut_ptr().add(offset) }
    }

    pub(crate) fn set_facts(&self, round: u64, facts: [u64; FACTS]) {
        let stored = &self.slot(self.rank).facts[(round % 2) as usize];
        for (stored, fact) in stored.iter().zip(facts) {
            stored.store(fact, Relaxed);
        }
    }

    /// Returns the facts of a rank's call. The rank must have posted the round.
    pub(crate) fn facts(&self, rank: usize, round: u64) -> [u64; FACTS] {
        let stored = &self.slot(rank).facts[(round % 2) as usize];
        std::array::from_fn(|index| stored[index].load(Relaxed))
    }

    /// Returns true if the rank has joined, even if it is gone again.
    pub(crate) fn has_joined(&self, rank: usize) -> bool {
        self.slot(rank).presence.load(Acquire) != ABSENT
    }

    /// Returns true if the rank joined and has since left or died.
    pub(crate) fn is_gone(&self, rank: usize) -> bool {
        let slot = self.slot(rank);
        match slot.presence.load(Acquire) {
            ABSENT => false,
            LEFT => true,
            _ => !Process { pid: slot.pid.load(Relaxed), start_time: slot.start_time.load(Relaxed) }.is_alive(),
        }
    }

    /// Marks this rank as gone, so that the others do not wait for it.
    pub(crate) fn leave(&self) {
        self.slot(self.rank).presence.store(LEFT, Release);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranks_must_agree_on_ranks_and_world_size() {
        let file = create().unwrap();
        let zero = Segment::join(&file, 0, 2).unwrap();
        assert!(zero.has_joined(0) && !zero.has_joined(1) && !zero.is_gone(1));
        assert!(Segment::join(&file, 0, 2).unwrap_err().message.contains("two processes"));
        assert!(Segment::join(&file, 1, 3).unwrap_err().message.contains("expects 3 ranks"));
        let one = Segment::join(&file, 1, 2).unwrap();
        assert!(zero.has_joined(1) && !zero.is_gone(1));
        one.leave();
        assert!(zero.is_gone(1));
    }

    #[test]
    fn buffers_are_shared_and_disjoint() {
        let file = create().unwrap();
        let (zero, one) = (Segment::join(&file, 0, 2).unwrap(), Segment::join(&file, 1, 2).unwrap());
        for (rank, round) in [(0, 6), (0, 7), (1, 6), (1, 7)] {
            // SAFETY: a buffer has `CHUNK` bytes, and only this thread uses it.
            unsafe { zero.buffer(rank, round).write_bytes(rank as u8 * 10 + round as u8, CHUNK) };
        }
        for (rank, round) in [(0, 6), (0, 7), (1, 6), (1, 7)] {
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(one.buffer(rank, round), CHUNK) };
            assert!(bytes.iter().all(|byte| *byte == rank as u8 * 10 + round as u8));
        }
    }
}
