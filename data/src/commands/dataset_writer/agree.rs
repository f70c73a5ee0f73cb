//! Agreement among ranks: either all continue, or all fail and rank 0 reports why.

use std::borrow::Borrow;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::error::EncodeError;
use arinar_collective::WorkGroup;

/// Message of a rank to rank 0.
#[derive(Serialize, Deserialize)]
enum Outcome<T> {
    Done(T),
    Failed { message: String, configuration: bool },
}

/// Waits for all ranks. If all of them succeeded, rank 0 receives the values of all ranks, and the others an empty
/// list. Otherwise every rank receives an error, and that of rank 0 describes which ranks failed and why.
pub(super) fn agree<T: Serialize + for<'a> Deserialize<'a>>(
    ranks: &WorkGroup,
    mine: Result<impl Borrow<T>, &EncodeError>,
    on_progress: impl FnMut(u64),
) -> Result<Vec<T>, EncodeError> {
    let unreadable = |error: serde_json::Error| EncodeError::Ranks { message: error.to_string(), configuration: false };
    let outcome = match &mine {
        Ok(value) => Outcome::Done(value.borrow()),
        Err(error) => Outcome::Failed { message: error.to_string(), configuration: error.is_configuration() },
    };
    let message = serde_json::to_vec(&outcome).map_err(unreadable)?;
    let mut values = Vec::new();
    let mut failures = BTreeSet::new();
    for (rank, message) in ranks.gather(&message, on_progress).unwrap_or_default().iter().enumerate() {
        match serde_json::from_slice(message).map_err(unreadable)? {
            Outcome::Done(value) => values.push(value),
            Outcome::Failed { message, configuration } => {
                failures.insert((message, configuration, rank));
            }
        }
    }
    let configuration = failures.iter().any(|(_, configuration, _)| *configuration);
    let code = ranks.broadcast(u8::from(!failures.is_empty()) + u8::from(configuration));
    if code == 0 {
        return Ok(values);
    }
    Err(EncodeError::Ranks { message: failure_text(&failures, ranks.world_size()), configuration: code == 2 })
}

/// Formats one line per distinct failure, which names the ranks unless all ranks failed for the same reason.
fn failure_text(failures: &BTreeSet<(String, bool, usize)>, world: usize) -> String {
    let mut lines = Vec::new();
    for (message, _, rank) in failures {
        let same = failures.iter().filter(|(other, ..)| other == message).count();
        let line = if same == world { message.clone() } else { format!("rank {rank}: {message}") };
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.join("\n")
}
