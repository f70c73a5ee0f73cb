//! A result cannot be written.

use std::io;

use thiserror::Error;

/// Standard output does not accept the result of a command.
#[derive(Debug, Error)]
#[error("cannot write the result to standard output: {0}")]
pub struct OutputError(#[source] pub(crate) io::Error);

impl OutputError {
    /// Returns true if the reader of the output has closed it, as `head` does after some lines. Programs then end without a
    /// message.
    pub fn is_closed_pipe(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}
