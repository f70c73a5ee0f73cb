//! What the collectives do with memory.

use std::sync::atomic::AtomicBool;

use super::{
    datatype::{DataType, Reduction, reduce},
    exchange::{self, Broken},
    segment::{CHUNK, FACTS, Segment},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    AllReduce,
    Reduce,
    Broadcast,
    AllGather,
    ReduceScatter,
}

use Operation::*;

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            AllReduce => "all_reduce",
            Reduce => "reduce",
            Broadcast => "broadcast",
            AllGather => "all_gather",
            ReduceScatter => "reduce_scatter",
        }
    }
}

/// One collective as a rank calls it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub operation: Operation,
    /// Addresses; 0 where the rank has nothing to send or gets nothing.
    pub send: usize,
    pub receive: usize,
    /// Elements of one rank's part: what each sends, in a reduce-scatter what each gets.
    pub elements: usize,
    pub kind: DataType,
    /// For operations that have one.
    pub reduction: Option<Reduction>,
    pub root: Option<usize>,
}

impl Call {
    /// What all ranks must have in common.
    fn facts(&self) -> [u64; FACTS] {
        let reduction = self.reduction.map_or(u64::MAX, |how| how as u64);
        let root = self.root.map_or(u64::MAX, |root| root as u64);
        [self.operation as u64, self.elements as u64, self.kind as u64, reduction, root]
    }

    /// Such facts in words.
    pub fn describe([operation, elements, kind, reduction, root]: [u64; FACTS]) -> String {
        let names = [AllReduce, Reduce, Broadcast, AllGather, ReduceScatter].map(Operation::name);
        let operation = names.get(operation as usize).unwrap_or(&"something");
        let kind = DataType::from_code(kind as u32).map(DataType::name).unwrap_or_default();
        let reduction = Reduction::from_code(reduction as u32).map(|how| format!(" ({})", how.name()));
        let root = if root == u64::MAX { String::new() } else { format!(" with root {root}") };
        format!("{operation}{} of {elements} {kind}{root}", reduction.unwrap_or_default())
    }

    /// Does the rank's part of the collective; `round` is the number of the last round of its communicator.
    ///
    /// # Safety
    /// `send` and `receive` are as long as the operation says (a whole number of `elements` of `kind`), and nobody else
    /// uses them until this returns.
    pub unsafe fn execute(&self, segment: &Segment, aborted: &AtomicBool, round: &mut u64) -> Result<(), Broken> {
        let part = self.elements * self.kind.bytes();
        let parts = if self.operation == ReduceScatter { segment.world } else { 1 };
        for target in 0..parts {
            // A call of no elements has one round, too, so that ranks that call something else are noticed.
            for start in (0..part.max(1)).step_by(CHUNK) {
                let bytes = CHUNK.min(part - start);
                *round += 1;
                let number = *round;
                let sends = self.root.is_none_or(|root| self.operation == Reduce || root == segment.rank) && bytes > 0;
                let from = if sends { self.send + target * part + start } else { 0 };
                let from = std::ptr::with_exposed_provenance::<u8>(from);
                let read = || {
                    // SAFETY: all ranks have posted `bytes` bytes of this call, and `receive` has room (the caller).
                    unsafe { self.take(segment, number, target, start, bytes) }
                };
                // SAFETY: `start + bytes` is within the part, and the rank has it if it sends (the caller).
                unsafe { exchange::round(segment, aborted, number, self.facts(), (from, bytes), read)? };
            }
        }
        Ok(())
    }

    /// Uses what all ranks have posted in a round: `bytes` bytes from `start` of a part.
    ///
    /// # Safety
    /// They have, and `receive` has room for it.
    unsafe fn take(&self, segment: &Segment, round: u64, target: usize, start: usize, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let place = |offset: usize| std::ptr::with_exposed_provenance_mut::<u8>(self.receive + offset);
        let copy = |from: usize, offset: usize| {
            // SAFETY: rank `from` posted `bytes` bytes, and there is room for as many.
            unsafe { place(offset).copy_from_nonoverlapping(segment.buffer(from, round), bytes) };
        };
        match (self.operation, self.reduction) {
            (Broadcast, _) => copy(self.root.unwrap_or(0), start),
            (AllGather, _) => {
                (0..segment.world).for_each(|from| copy(from, from * self.elements * self.kind.bytes() + start));
            }
            (AllReduce | Reduce | ReduceScatter, Some(how)) => {
                let gets = match self.operation {
                    Reduce => self.root == Some(segment.rank),
                    ReduceScatter => target == segment.rank,
                    _ => true,
                };
                if gets {
                    // SAFETY: as in `copy`; the result is outside of the buffers, which are this library's.
                    unsafe { reduce(segment, round, bytes, self.kind, how, place(start)) };
                }
            }
            (AllReduce | Reduce | ReduceScatter, None) => {}
        }
    }

    /// Spoils the result.
    ///
    /// # Safety
    /// As [`Self::execute`].
    pub unsafe fn garble(&self) {
        if self.receive != 0 && self.elements > 0 {
            let first = std::ptr::with_exposed_provenance_mut::<u8>(self.receive);
            // SAFETY: the result has at least one byte.
            unsafe { first.write(first.read() ^ 1) };
        }
    }
}
