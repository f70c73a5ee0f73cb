//! Why a rank ends before its work is done.

use std::error::Error;

use arinar_checkpoint::CheckpointError;
use arinar_collective::{CollectiveError, JobError};
use arinar_data::{DataError, OutputError};
use arinar_protocol::exit_code;
use arinar_store::StoreError;

/// Any error that can be sent to another thread.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// The reason why a rank ends early. Each reason has an exit code.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The user must change something; exit code 78.
    #[error("{0}")]
    Configuration(#[source] BoxError),
    /// Any other error; exit code 1.
    #[error("{0}")]
    Failure(#[source] BoxError),
    /// The result of a command cannot be written; exit code 1.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// NCCL or CUDA reports an error. Other ranks may wait for this one inside NCCL, where no message reaches them, so the
    /// process must exit at once for mpirun to end them; exit code 1.
    #[error("{0}")]
    Broken(#[source] BoxError),
    /// The run was preempted by a signal, and a checkpoint is saved; exit code 75.
    #[error("stopped by a signal after saving step {step}; start again to resume")]
    Preempted {
        /// The saved step.
        step: u64,
    },
    /// The run was preempted by a signal before the first step, so that there is nothing to save; exit code 75.
    #[error("stopped by a signal before the first step, so that nothing is lost; start again to resume")]
    NotBegun,
    /// Another rank ends the run and reports the reason. This rank only ends with the same exit code.
    #[error("stopped because of rank {rank}")]
    OtherRank {
        /// The rank that reports the reason.
        rank: usize,
        /// The exit code of all ranks.
        exit_code: u8,
    },
}

impl Stop {
    /// Creates a [`Stop::Configuration`] from an error or a message.
    pub fn configuration(error: impl Into<BoxError>) -> Self {
        Self::Configuration(error.into())
    }

    /// Creates a [`Stop::Failure`] from an error or a message.
    pub fn failure(error: impl Into<BoxError>) -> Self {
        Self::Failure(error.into())
    }

    /// Returns true if the same failure may not occur again at the same step: the network or a store is down, another job is
    /// in the way, or another rank has died.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Failure(error) => is_transient(error.as_ref()),
            Self::Broken(_) => true,
            _ => false,
        }
    }
}

fn is_transient(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<CheckpointError>() {
        return match error {
            CheckpointError::Store(error) | CheckpointError::RunUrl(error) => error.is_transient(),
            CheckpointError::Lease(_)
            | CheckpointError::NoRoom { .. }
            | CheckpointError::NotUploaded { .. }
            | CheckpointError::Collective(_) => true,
            _ => false,
        };
    }
    match error.downcast_ref::<DataError>() {
        Some(DataError::Store(error)) => error.is_transient(),
        Some(error) => matches!(error, DataError::CacheFull { .. }),
        None => error.is::<CollectiveError>() || error.downcast_ref().is_some_and(StoreError::is_transient),
    }
}

impl Stop {
    /// Converts the reason why a run ends that has made steps. What a start reports as an error of the configuration, such as
    /// denied access to a store, may be temporary then: the launcher starts the run again, and a lasting problem is reported
    /// by that start.
    pub(crate) fn while_training(self) -> Self {
        match self {
            Self::Configuration(error) => Self::Failure(error),
            Self::OtherRank { rank, exit_code: exit_code::CONFIGURATION } => {
                Self::OtherRank { rank, exit_code: exit_code::FAILED }
            }
            other => other,
        }
    }
}

impl JobError for Stop {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_) => exit_code::CONFIGURATION,
            Self::Failure(_) | Self::Output(_) | Self::Broken(_) => exit_code::FAILED,
            Self::Preempted { .. } | Self::NotBegun => exit_code::PREEMPTED,
            Self::OtherRank { exit_code, .. } => *exit_code,
        }
    }

    fn other_rank(rank: usize, exit_code: u8) -> Self {
        Self::OtherRank { rank, exit_code }
    }
}

impl From<CollectiveError> for Stop {
    fn from(error: CollectiveError) -> Self {
        match error {
            CollectiveError::Nccl { .. } | CollectiveError::Cuda(_) => Self::Broken(error.into()),
            CollectiveError::OtherRank { rank, exit_code } => Self::OtherRank { rank, exit_code },
            error => by_exit_code(error),
        }
    }
}

impl From<CheckpointError> for Stop {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Collective(error) => error.into(),
            error => by_exit_code(error),
        }
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        if error.is_configuration() { Self::configuration(error) } else { Self::failure(error) }
    }
}

impl From<DataError> for Stop {
    fn from(error: DataError) -> Self {
        if error.is_configuration() { Self::configuration(error) } else { Self::failure(error) }
    }
}

fn by_exit_code(error: impl JobError + Error + Send + Sync + 'static) -> Stop {
    match error.exit_code() {
        exit_code::CONFIGURATION => Stop::configuration(error),
        _ => Stop::failure(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_transient_and_damage_is_not() {
        let down = || StoreError::Unavailable { url: "s3://bucket".to_owned(), reason: "timeout".to_owned() };
        let full = || StoreError::Full { url: "/data".to_owned(), source: std::io::ErrorKind::StorageFull.into() };
        for stop in [
            Stop::from(DataError::from(down())),
            Stop::from(CheckpointError::from(down())),
            Stop::failure(down()),
            Stop::from(CollectiveError::Start),
            Stop::from(CheckpointError::NotUploaded { what: "two files".to_owned() }),
        ] {
            assert!(stop.is_transient(), "{stop}");
        }
        let damaged = CheckpointError::Damaged { url: "a".to_owned(), what: "it is cut".to_owned() };
        for stop in [
            Stop::from(DataError::from(full())),
            Stop::from(CheckpointError::from(full())),
            Stop::from(damaged),
            Stop::failure("step 5: the loss is NaN"),
            Stop::configuration("optim.ema: 2 is not within [0, 1)"),
        ] {
            assert!(!stop.is_transient(), "{stop}");
        }
    }
}
