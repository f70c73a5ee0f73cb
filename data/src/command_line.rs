//! The answer to a command line that asks for help or that is invalid.

use std::io::{self, Write};

use arinar_protocol::exit_code;

use crate::{output_error::OutputError, reporter::Reporter};

/// Prints help, the version or a usage error, and returns the exit code of the program. Only the rank that `speaks` prints:
/// all ranks have the same command line.
pub fn answer_without_command(program: &str, answer: &clap::Error, speaks: bool) -> u8 {
    let printed = if speaks { answer.print().and_then(|()| io::stdout().flush()) } else { Ok(()) };
    if answer.use_stderr() {
        return exit_code::CONFIGURATION;
    }
    match printed.map_err(OutputError) {
        Ok(()) => exit_code::DONE,
        Err(error) => {
            if !error.is_closed_pipe() {
                Reporter::console().note(&format!("{program}: {error}"));
            }
            exit_code::FAILED
        }
    }
}
