//! The last thing a program does: report why it ends, to the user and to the launcher.

use std::process::ExitCode;

use arinar_collective::JobError;
use arinar_data::Reporter;
use arinar_model::text::one_line;
use arinar_protocol::Farewell;

use crate::{heartbeat, stop::Stop};

/// Reports why `rank` ends, unless another rank does, and returns the exit code of the process.
pub fn report(program: &str, rank: usize, stop: &Stop) -> ExitCode {
    let reason = reason(rank, stop);
    if let Some(reason) = &reason {
        let prefix = match stop {
            Stop::Configuration(_) | Stop::Failure(_) | Stop::Output(_) | Stop::Broken(_) => "error: ",
            _ => "",
        };
        Reporter::console().note(&format!("{program}: {prefix}{reason}"));
    }
    heartbeat::farewell(Farewell { transient: stop.is_transient(), ..Farewell::new(stop.exit_code(), reason) });
    ExitCode::from(stop.exit_code())
}

/// Returns the reason in one line, if this rank reports it.
fn reason(rank: usize, stop: &Stop) -> Option<String> {
    match stop {
        Stop::OtherRank { .. } => None,
        Stop::Output(error) => (!error.is_closed_pipe()).then(|| stop.to_string()),
        Stop::Preempted { .. } | Stop::NotBegun => (rank == 0).then(|| stop.to_string()),
        // The message may quote the contents of a file.
        Stop::Configuration(_) | Stop::Failure(_) | Stop::Broken(_) => Some(one_line(&stop.to_string())),
    }
}
