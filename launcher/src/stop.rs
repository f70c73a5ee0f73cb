//! The error that ends the launcher.

use arinar_protocol::exit_code;

/// Why the launcher exits before the run is done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}")]
pub(crate) struct Stop {
    /// The exit code.
    pub(crate) code: u8,
    /// The reason, in one line.
    pub(crate) line: String,
}

impl Stop {
    /// Creates a stop with exit code 78: the user must change something.
    pub(crate) fn configuration(line: impl Into<String>) -> Self {
        Self { code: exit_code::CONFIGURATION, line: line.into() }
    }

    /// Creates a stop with exit code 1: any other error.
    pub(crate) fn failure(line: impl Into<String>) -> Self {
        Self { code: exit_code::FAILED, line: line.into() }
    }
}
