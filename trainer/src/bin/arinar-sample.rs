//! `arinar-sample`: samples images and a labelled grid from the EMA weights of a run.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use arinar_collective::machine::{allocator, open_files};
use arinar_data::answer_without_command;
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
        Err(error) => return answer_without_command("arinar-sample", &error, true).into(),
    };
    match sample::run(&arguments) {
        Ok(()) => ExitCode::from(exit_code::DONE),
        Err(stop) => shutdown::report("arinar-sample", 0, &stop),
    }
}
