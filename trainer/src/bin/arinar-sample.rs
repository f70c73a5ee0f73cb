//! `arinar-sample`: samples images and a labelled grid from the EMA weights of a run.

use std::process::ExitCode;

use arinar_collective::machine::{allocator, open_files};
use arinar_protocol::exit_code;
use arinar_trainer::{
    sample::{self, Arguments},
    shutdown,
};
use clap::Parser;

fn main() -> ExitCode {
    open_files::raise_limit();
    allocator::keep_freed_memory();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return command_line_error(&error),
    };
    match sample::run(&arguments) {
        Ok(()) => ExitCode::from(exit_code::DONE),
        Err(stop) => shutdown::report("arinar-sample", 0, &stop),
    }
}

/// Prints help, the version, or a usage error, which is a configuration error.
fn command_line_error(error: &clap::Error) -> ExitCode {
    // The output may be closed.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { exit_code::CONFIGURATION } else { exit_code::DONE })
}
