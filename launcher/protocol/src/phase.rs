//! The phases of a rank.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A phase of a rank. A rank is in exactly one phase at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// From the start of the process to the first step: MPI, dataset, weights, checkpoint.
    #[default]
    StartUp,
    /// Waiting for the next batch.
    DataWait,
    /// Forward and backward pass, optimizer step, logging.
    Compute,
    /// Waiting for the other ranks in an all-reduce, and the all-reduce itself.
    AllReduce,
    /// Blocked by a checkpoint: by the copy of the weights, or by a full spool.
    Checkpoint,
    /// After the last step: waiting until the last checkpoint is saved and uploaded.
    Finish,
}

impl Phase {
    /// All phases.
    pub const ALL: [Self; 6] =
        [Self::StartUp, Self::DataWait, Self::Compute, Self::AllReduce, Self::Checkpoint, Self::Finish];

    /// Returns the name of the phase in messages and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::StartUp => "start_up",
            Self::DataWait => "data_wait",
            Self::Compute => "compute",
            Self::AllReduce => "all_reduce",
            Self::Checkpoint => "checkpoint",
            Self::Finish => "finish",
        }
    }

    /// Returns true for the phases of a training step, whose usual duration can be learned. The other phases have no
    /// usual duration.
    pub fn is_step(self) -> bool {
        matches!(self, Self::DataWait | Self::Compute | Self::AllReduce)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
