//! The error that ends the launcher.

use std::io;

use arinar_protocol::exit_code;

/// Why the launcher exits before the run is done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}")]
pub(crate) struct Stop {
    /// The exit code.
    pub(crate) code: u8,
    /// The reason, in one line. It is empty if there is nothing to report.
    pub(crate) line: String,
}

impl Stop {
    /// Creates a stop with exit code 78: the user must change something.
    pub(crate) fn configuration(line: impl Into<String>) -> Self {
        Self { code: exit_code::CONFIGURATION, line: line.into() }
    }

    /// Creates a stop because the result of a command cannot be written; exit code 1. The line is empty if the reader has
    /// closed the output, as `head` does after some lines.
    pub(crate) fn output(error: &io::Error) -> Self {
        Self::failure(match error.kind() {
            io::ErrorKind::BrokenPipe => String::new(),
            _ => format!("cannot write the result to standard output: {error}"),
        })
    }

    /// Creates a stop with exit code 1: any other error.
    pub(crate) fn failure(line: impl Into<String>) -> Self {
        Self { code: exit_code::FAILED, line: line.into() }
    }
}
