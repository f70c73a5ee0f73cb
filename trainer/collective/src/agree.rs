//! Reaching agreement: all ranks continue, or all end with the same exit code.

use arinar_protocol::exit_code;

use crate::{
    collective::{Collective, Reduction},
    error::CollectiveError,
};

/// An error with which all ranks of a job can end together.
pub trait JobError: From<CollectiveError> {
    /// The exit code of a process that ends with this error.
    fn exit_code(&self) -> u8;

    /// The error of a rank that ends because rank `rank` failed with `exit_code`.
    fn other_rank(rank: usize, exit_code: u8) -> Self;
}

impl JobError for CollectiveError {
    fn exit_code(&self) -> u8 {
        match self {
            CollectiveError::Unavailable(_) | CollectiveError::SharedGpu { .. } | CollectiveError::Mismatch { .. } => {
                exit_code::CONFIGURATION
            }
            CollectiveError::OtherRank { exit_code, .. } => *exit_code,
            _ => exit_code::FAILED,
        }
    }

    fn other_rank(rank: usize, exit_code: u8) -> Self {
        CollectiveError::OtherRank { rank, exit_code }
    }
}

/// Collects the bytes of every rank, in rank order, on every rank.
///
/// # Errors
/// Returns an error if a broadcast fails.
pub fn gather(collective: &dyn Collective, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
    (0..collective.world_size()).map(|root| collective.broadcast_bytes(mine.to_vec(), root)).collect()
}

/// Lets all ranks continue or end together. Returns `Ok` only if every rank passed `Ok`.
///
/// If some ranks failed, the lowest of them keeps its error, which it is expected to report; all other ranks receive
/// [`JobError::other_rank`] with the same exit code.
///
/// # Errors
/// Returns an error on every rank if any rank failed.
pub fn agree<T, E: JobError>(collective: &dyn Collective, result: Result<T, E>) -> Result<T, E> {
    let (rank, none) = (collective.rank() as f64, collective.world_size() as f64);
    let mut first = [if result.is_err() { rank } else { none }];
    collective.all_reduce_scalars(&mut first, Reduction::Min)?;
    if first[0] >= none {
        return result;
    }
    let reports = first[0] as usize == collective.rank();
    let mut code = [match &result {
        Err(error) if reports => f64::from(error.exit_code()),
        _ => 0.0,
    }];
    collective.all_reduce_scalars(&mut code, Reduction::Max)?;
    match result {
        Err(error) if reports => Err(error),
        _ => Err(E::other_rank(first[0] as usize, code[0] as u8)),
    }
}

/// Checks that all ranks hold the same values. `facts` are pairs of names and values; the names must be equal on all
/// ranks.
///
/// # Errors
/// Returns [`CollectiveError::Mismatch`] for the first value that differs from rank 0's.
pub fn require_equal(collective: &dyn Collective, facts: &[(&str, String)]) -> Result<(), CollectiveError> {
    for (name, value) in facts {
        let expected = collective.broadcast_bytes(value.clone().into_bytes(), 0)?;
        let result = if expected == value.as_bytes() {
            Ok(())
        } else {
            Err(CollectiveError::Mismatch {
                rank: collective.rank(),
                name: (*name).to_owned(),
                value: value.clone(),
                expected: String::from_utf8_lossy(&expected).into_owned(),
            })
        };
        agree(collective, result)?;
    }
    Ok(())
}
