//! How the launcher ends, and the one line that says why.

use arinar_protocol::exit_code;

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
        Self { code: exit_code::CONFIGURATION, line: line.into() }
    }

    /// Anything else; exit code 1.
    pub fn failure(line: impl Into<String>) -> Self {
        Self { code: exit_code::FAILED, line: line.into() }
    }
}
