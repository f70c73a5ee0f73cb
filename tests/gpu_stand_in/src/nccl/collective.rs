//! The data movement of the collectives.

use std::sync::atomic::AtomicBool;

use super::{
    datatype::{DataType, Reduction, reduce},
    exchange::{self, Broken},
    segment::{CHUNK, FACTS, Segment},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    AllReduce,
    Reduce,
    Broadcast,
    AllGather,
    ReduceScatter,
}

use Operation::*;

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            AllReduce => "all_reduce",
            Reduce => "reduce",
            Broadcast => "broadcast",
            AllGather => "all_gather",
            ReduceScatter => "reduce_scatter",
        }
    }
}

/// A rank's call of a collective.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) operation: Operation,
    /// Address of the input; 0 if the rank sends nothing.
    pub(crate) send: usize,
    /// Address of the output; 0 if the rank receives nothing.
    pub(crate) receive: usize,
    /// Number of elements in one rank's part: those that each rank sends or, for reduce-scatter, receives.
    pub(crate) elements: usize,
    pub(crate) kind: DataType,
    /// Reduction, if the operation has one.
    pub(crate) reduction: Option<Reduction>,
    /// Root rank, if the operation has one.
    pub(crate) root: Option<usize>,
}

impl Call {
    /// Returns the properties that must be equal on all ranks.
    fn facts(&self) -> [u64; FACTS] {
        let reduction = self.reduction.map_or(u64::MAX, |how| how as u64);
        let root = self.root.map_or(u64::MAX, |root| root as u64);
        [self.operation as u64, self.elements as u64, self.kind as u64, reduction, root]
    }

    /// Describes such properties in words.
    pub(crate) fn describe([operation, elements, kind, reduction, root]: [u64; FACTS]) -> String {
        let names = [AllReduce, Reduce, Broadcast, AllGather, ReduceScatter].map(Operation::name);
        let operation = names.get(operation as usize).unwrap_or(&"unknown operation");
        let kind = DataType::from_code(kind as u32).map(DataType::name).unwrap_or_default();
        let reduction = Reduction::from_code(reduction as u32).map(|how| format!(" ({})", how.name()));
        let root = if root == u64::MAX { String::new() } else { format!(" with root {root}") };
        format!("{operation}{} of {elements} {kind}{root}", reduction.unwrap_or_default())
    }

    /// Executes the rank's part of the collective. `round` is the number of the communicator's last round.
    ///
    /// # Safety
    /// `send` and `receive` must have the length that the operation requires (a multiple of `elements` of `kind`), and
    /// nothing else may use them until this function returns.
    pub(crate) unsafe fn execute(
        &self,
        segment: &Segment,
        aborted: &AtomicBool,
        round: &mut u64,
    ) -> Result<(), Broken> {
        let part = self.elements * self.kind.bytes();
        let parts = if self.operation == ReduceScatter { segment.world } else { 1 };
        for target in 0..parts {
            // A call without elements also has one round, so that mismatched calls are detected.
            for start in (0..part.max(1)).step_by(CHUNK) {
                let bytes = CHUNK.min(part - start);
                *round += 1;
                let number = *round;
                let sends = self.root.is_none_or(|root| self.operation == Reduce || root == segment.rank) && bytes > 0;
                let from = if sends { self.send + target * part + start } else { 0 };
                let from = std::ptr::with_exposed_provenance::<u8>(from);
                let read = || {
                    // SAFETY: all ranks have posted `bytes` bytes of this call, and the caller guarantees that
                    // `receive` has room for them.
                    unsafe { self.consume(segment, number, target, start, bytes) }
                };
                // SAFETY: `start + bytes` is within the part, whose memory the caller guarantees if the rank sends.
                unsafe { exchange::round(segment, aborted, number, self.facts(), (from, bytes), read)? };
            }
        }
        Ok(())
    }

    /// Writes the result of a round to `receive`: `bytes` bytes from `start` of a part.
    ///
    /// # Safety
    /// All ranks must have posted these bytes, and `receive` must have room for the result.
    unsafe fn consume(&self, segment: &Segment, round: u64, target: usize, start: usize, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let place = |offset: usize| std::ptr::with_exposed_provenance_mut::<u8>(self.receive + offset);
        let copy = |from: usize, offset: usize| {
            // SAFETY: rank `from` has posted `bytes` bytes, and `receive` has room for them.
            unsafe { place(offset).copy_from_nonoverlapping(segment.buffer(from, round), bytes) };
        };
        match (self.operation, self.reduction) {
            (Broadcast, _) => copy(self.root.unwrap_or(0), start),
            (AllGather, _) => {
                (0..segment.world).for_each(|from| copy(from, from * self.elements * self.kind.bytes() + start));
            }
            (AllReduce | Reduce | ReduceScatter, Some(how)) => {
                let receives = match self.operation {
                    Reduce => self.root == Some(segment.rank),
                    ReduceScatter => target == segment.rank,
                    _ => true,
                };
                if receives {
                    // SAFETY: as in `copy`; the result is outside the buffers, which belong to this library.
                    unsafe { reduce(segment, round, bytes, self.kind, how, place(start)) };
                }
            }
            (AllReduce | Reduce | ReduceScatter, None) => {}
        }
    }

    /// Flips a bit of the result.
    ///
    /// # Safety
    /// The conditions are those of [`Self::execute`].
    pub(crate) unsafe fn corrupt(&self) {
        if self.receive != 0 && self.elements > 0 {
            let first = std::ptr::with_exposed_provenance_mut::<u8>(self.receive);
            // SAFETY: the result has at least one byte.
            unsafe { first.write(first.read() ^ 1) };
        }
    }
}
