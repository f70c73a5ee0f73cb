//! The memory that the ranks of a communicator share: for each rank who it is, how far it is, and two buffers, so that
//! one is written while the other is still read.

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

/// Most ranks of a communicator.
pub const MAX_RANKS: usize = 64;
/// Bytes of one buffer; memory that no rank touches is never allocated.
pub const CHUNK: usize = 256 << 10;
/// Facts about a call that ranks compare.
pub const FACTS: usize = 5;

/// A rank's place. Zeros are a rank that has not come.
#[repr(C, align(64))]
pub struct Slot {
    pid: AtomicU32,
    presence: AtomicU32,
    started: AtomicU64,
    /// Number of the last round whose data is in the buffer.
    pub posted: AtomicU64,
    /// Number of the last round of which it has read everybody's buffers.
    pub consumed: AtomicU64,
    facts: [[AtomicU64; FACTS]; 2],
}

const ABSENT: u32 = 0;
const HERE: u32 = 1;
const LEFT: u32 = 2;

#[repr(C, align(64))]
struct Layout {
    /// Number of ranks, as the first to come says.
    world: AtomicU32,
    slots: [Slot; MAX_RANKS],
}

const HEAD: usize = size_of::<Layout>().next_multiple_of(4096);
const LENGTH: usize = HEAD + MAX_RANKS * 2 * CHUNK;

/// New memory, all zeros.
pub fn create() -> io::Result<File> {
    let file = memfd_create("arinar-stand-in", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, LENGTH as u64)?;
    // So that no rank can take away what another has mapped.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(file.into())
}

/// One rank's view of the shared memory.
#[derive(Debug)]
pub struct Segment {
    memory: MmapRaw,
    pub rank: usize,
    pub world: usize,
}

impl Segment {
    /// Maps the memory and takes the rank's place.
    ///
    /// # Errors
    /// The memory cannot be mapped, or the ranks disagree about who they are.
    pub fn join(file: &File, rank: usize, world: usize) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(SystemError, format!("shared memory: {error}"));
        if file.metadata().map_err(failed)?.len() != LENGTH as u64 {
            return Err(Failure::new(SystemError, "the shared memory is that of another version of this library"));
        }
        let memory = MmapOptions::new().len(LENGTH).map_raw(file).map_err(failed)?;
        let segment = Self { memory, rank, world };
        let mine = world as u32;
        if let Err(theirs) = segment.layout().world.compare_exchange(0, mine, Release, Acquire)
            && theirs != mine
        {
            let message = format!("rank {rank} is told of {mine} ranks, and another of {theirs}");
            return Err(Failure::new(InvalidUsage, message));
        }
        let this = Process::this();
        let slot = segment.slot(rank);
        if slot.pid.compare_exchange(0, this.pid, Relaxed, Relaxed).is_err() {
            return Err(Failure::new(InvalidUsage, format!("two processes are rank {rank}")));
        }
        slot.started.store(this.started, Relaxed);
        slot.presence.store(HERE, Release);
        Ok(segment)
    }

    fn layout(&self) -> &Layout {
        // SAFETY: the mapping is page-aligned, longer than a `Layout`, and lives as long as `self`. It holds atomics
        // alone, which processes may change at any time, and every bit pattern is one of theirs.
        unsafe { &*self.memory.as_mut_ptr().cast::<Layout>() }
    }

    pub fn slot(&self, rank: usize) -> &Slot {
        &self.layout().slots[rank]
    }

    /// The rank's buffer of a round, [`CHUNK`] bytes from an address that every element type may have.
    pub fn buffer(&self, rank: usize, round: u64) -> *mut u8 {
        assert!(rank < MAX_RANKS);
        let offset = HEAD + (2 * rank + (round % 2) as usize) * CHUNK;
        // SAFETY: `offset + CHUNK` is at most `LENGTH`, which is mapped.
        unsafe { self.memory.as_mut_ptr().add(offset) }
    }

    pub fn set_facts(&self, round: u64, facts: [u64; FACTS]) {
        let places = &self.slot(self.rank).facts[(round % 2) as usize];
        for (place, fact) in places.iter().zip(facts) {
            place.store(fact, Relaxed);
        }
    }

    /// Only for a round that the rank has posted.
    pub fn facts(&self, rank: usize, round: u64) -> [u64; FACTS] {
        let places = &self.slot(rank).facts[(round % 2) as usize];
        std::array::from_fn(|index| places[index].load(Relaxed))
    }

    /// This rank has come, and perhaps gone again.
    pub fn has_come(&self, rank: usize) -> bool {
        self.slot(rank).presence.load(Acquire) != ABSENT
    }

    /// The rank came and will do nothing any more.
    pub fn is_gone(&self, rank: usize) -> bool {
        let slot = self.slot(rank);
        match slot.presence.load(Acquire) {
            ABSENT => false,
            LEFT => true,
            _ => !Process { pid: slot.pid.load(Relaxed), started: slot.started.load(Relaxed) }.lives(),
        }
    }

    /// The others must not wait for this rank any more.
    pub fn leave(&self) {
        self.slot(self.rank).presence.store(LEFT, Release);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranks_must_agree_about_who_they_are() {
        let file = create().unwrap();
        let zero = Segment::join(&file, 0, 2).unwrap();
        assert!(zero.has_come(0) && !zero.has_come(1) && !zero.is_gone(1));
        assert!(Segment::join(&file, 0, 2).unwrap_err().message.contains("two processes"));
        assert!(Segment::join(&file, 1, 3).unwrap_err().message.contains("3 ranks"));
        let one = Segment::join(&file, 1, 2).unwrap();
        assert!(zero.has_come(1) && !zero.is_gone(1));
        one.leave();
        assert!(zero.is_gone(1));
    }

    #[test]
    fn buffers_are_shared_and_apart() {
        let file = create().unwrap();
        let (zero, one) = (Segment::join(&file, 0, 2).unwrap(), Segment::join(&file, 1, 2).unwrap());
        for (rank, round) in [(0, 6), (0, 7), (1, 6), (1, 7)] {
            // SAFETY: a buffer is `CHUNK` bytes, and only this thread uses them.
            unsafe { zero.buffer(rank, round).write_bytes(rank as u8 * 10 + round as u8, CHUNK) };
        }
        for (rank, round) in [(0, 6), (0, 7), (1, 6), (1, 7)] {
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(one.buffer(rank, round), CHUNK) };
            assert!(bytes.iter().all(|byte| *byte == rank as u8 * 10 + round as u8));
        }
    }
}
