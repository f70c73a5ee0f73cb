//! The interface between the sources of training data and the training loop.

use tch::Tensor;

use crate::error::DataError;
use crate::read::token::ResumeToken;

/// Identity of a sample that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleKey {
    /// Epoch.
    pub epoch: u64,
    /// Index of the sample in the dataset.
    pub sample: u64,
    /// Index of its picture in the sorted list of all pictures.
    pub source_id: u64,
}

/// A micro-batch of b samples.
#[derive(Debug)]
pub struct Batch {
    /// Scaled latents drawn from the posterior, [b, C, H, W] f32.
    pub latents: Tensor,
    /// Class labels, `[b]` i64.
    pub labels: Tensor,
    /// Identities of the samples, in the same order.
    pub samples: Vec<SampleKey>,
}

/// An endless sequence of one rank's micro-batches.
pub trait BatchSource {
    /// Returns the next micro-batch.
    ///
    /// # Errors
    /// Returns an error if the data are damaged or unreachable.
    fn next_batch(&mut self) -> Result<Batch, DataError>;

    /// Returns the position of the first global batch that has not been returned in full.
    fn position(&self) -> ResumeToken;
}
