//! The outcome of a job.

use arinar_protocol::exit_code;

use crate::{exit_evidence::ExitEvidence, policy::Outcome};

/// Whether the end of a job was requested, and whether it had to be enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShutdownRequest {
    /// True if a signal requested the end of the job.
    pub(super) requested: bool,
    /// True if the job was killed, because its grace period was over or was cut short.
    pub(super) overdue: bool,
}

/// Determines the outcome of a job that has ended.
pub(super) fn outcome(evidence: &ExitEvidence<'_>, request: ShutdownRequest) -> Outcome {
    let (resumed, reached) = (evidence.ranks.resumed(), evidence.ranks.reached());
    let (mut code, mut reason) = (evidence.code(), evidence.reason());
    if evidence.hang.is_some() && code != exit_code::CONFIGURATION {
        // A job that hung is restarted, whatever its ranks reported while they were killed, unless its end was requested.
        code = if request.requested { exit_code::PREEMPTED } else { exit_code::FAILED };
    }
    let is_failure = !matches!(code, exit_code::DONE | exit_code::PREEMPTED | exit_code::CONFIGURATION);
    if request.requested && is_failure {
        let saved = evidence.ranks.iter().map(|rank| rank.beat.saved_step).max().unwrap_or(0);
        let advice = format!("start again to resume from the checkpoint of step {saved}");
        if request.overdue {
            code = exit_code::PREEMPTED;
            reason = format!("the job was killed as requested, without a last checkpoint; {advice}");
        } else if reached == resumed {
            code = exit_code::PREEMPTED;
            reason = format!("the job ended before its first step; {advice}");
        }
    }
    let deterministic = evidence.is_deterministic();
    Outcome { code, reason, resumed, reached, requested: request.requested, deterministic }
}
