//! `arinar-launcher --config X`: starts, watches and restarts a training job; see --help.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::{
    io::{self, Write},
    process::ExitCode,
};

use arinar_launcher::{Arguments, supervise};
use arinar_protocol::exit_code;

fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err((text, exit_code::DONE)) => return ExitCode::from(print_help(&text)),
        Err((text, code)) => {
            // If this cannot be written, there is nothing left to do.
            let _ = anstream::stderr().write_all(text.as_bytes());
            return ExitCode::from(code);
        }
    };
    // A single thread: the kernel signals mpirun when the thread that started it exits.
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => ExitCode::from(runtime.block_on(supervise(arguments))),
        Err(error) => {
            let _ = writeln!(io::stderr(), "arinar-launcher: error: {error}");
            ExitCode::from(exit_code::FAILED)
        }
    }
}

/// Prints help or the version, and returns the exit code.
fn print_help(text: &str) -> u8 {
    let mut stdout = anstream::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => exit_code::DONE,
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit_code::FAILED,
        Err(error) => {
            let text = format!("arinar-launcher: error: cannot write the result to standard output: {error}\n");
            let _ = anstream::stderr().write_all(text.as_bytes());
            exit_code::FAILED
        }
    }
}
