//! How the launcher ends, and the one line that says why.

/// The run reached its end.
pub const DONE: u8 = 0;
/// Something went wrong that a changed command line would not cure.
pub const FAILED: u8 = 1;
/// Ended by a signal: start again to go on ("requeue me").
pub const PREEMPTED: u8 = 75;
/// The command line, the configuration, or the machine's set-up must be changed.
pub const CONFIGURATION: u8 = 78;

/// An end with something to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}")]
pub struct Stop {
    /// The exit code.
    pub code: u8,
    /// Why, in one line.
    pub line: String,
}

impl Stop {
    /// The user must change something; exit code 78.
    pub fn configuration(line: impl Into<String>) -> Self {
        Self { code: CONFIGURATION, line: line.into() }
    }

    /// Anything else; exit code 1.
    pub fn failure(line: impl Into<String>) -> Self {
        Self { code: FAILED, line: line.into() }
    }
}
