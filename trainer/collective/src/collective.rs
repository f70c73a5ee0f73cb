//! The interface of collective operations.

use std::ops::Range;

use tch::Tensor;

use crate::error::CollectiveError;

/// How [`Collective::all_reduce_scalars`] combines values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The sum over all ranks.
    Sum,
    /// The minimum over all ranks.
    Min,
    /// The maximum over all ranks.
    Max,
}

/// The collective operations of a fixed group of ranks. Every rank must make the same calls in the same order.
pub trait Collective {
    /// Returns this rank, counted from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn world_size(&self) -> usize;

    /// Returns the names and versions of the libraries behind this implementation.
    fn describe(&self) -> String;

    /// Blocks until every rank has called it.
    ///
    /// # Errors
    /// Returns an error if the ranks cannot be reached.
    fn barrier(&self) -> Result<(), CollectiveError>;

    /// Replaces a flat float32 tensor by its sum over the ranks. Every rank receives the same bits, and the same world
    /// size gives the same bits again.
    ///
    /// # Errors
    /// Returns [`CollectiveError::Layout`] if the tensor is not contiguous float32 on this rank's device.
    fn all_reduce_sum(&self, flat: &mut Tensor) -> Result<(), CollectiveError>;

    /// Replaces a flat float32 tensor by that of rank `root`.
    ///
    /// # Errors
    /// Returns [`CollectiveError::Layout`] if the tensor is not contiguous float32 on this rank's device.
    fn broadcast(&self, flat: &mut Tensor, root: usize) -> Result<(), CollectiveError>;

    /// Combines a few scalars over the ranks, element by element.
    ///
    /// # Errors
    /// Returns an error if the ranks cannot be reached.
    fn all_reduce_scalars(&self, scalars: &mut [f64], how: Reduction) -> Result<(), CollectiveError>;

    /// Returns the bytes of rank `root` on every rank. The bytes passed by other ranks are ignored.
    ///
    /// # Errors
    /// Returns [`CollectiveError::TooLong`] if the message does not fit into one broadcast.
    fn broadcast_bytes(&self, bytes: Vec<u8>, root: usize) -> Result<Vec<u8>, CollectiveError>;

    /// Completes a flat tensor of which rank i holds the valid elements `ranges[i]`, on every rank.
    ///
    /// # Errors
    /// Returns [`CollectiveError::Layout`] if the tensor is not contiguous float32 on this rank's device.
    fn all_gather(&self, flat: &mut Tensor, ranges: &[Range<usize>]) -> Result<(), CollectiveError> {
        for (root, range) in ranges.iter().enumerate() {
            let mut part = flat.narrow(0, range.start as i64, range.len() as i64);
            self.broadcast(&mut part, root)?;
        }
        Ok(())
    }
}
