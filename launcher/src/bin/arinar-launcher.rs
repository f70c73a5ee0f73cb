//! `arinar-launcher --config X`: starts, watches and restarts a training job; see --help.

use std::{io::Write, process::ExitCode};

use arinar_launcher::{Arguments, supervise};
use arinar_protocol::exit_code;

fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err((text, code)) => {
            // If this cannot be written, there is nothing left to do.
            let _ = if code == exit_code::DONE {
                anstream::stdout().write_all(text.as_bytes())
            } else {
                anstream::stderr().write_all(text.as_bytes())
            };
            return ExitCode::from(code);
        }
    };
    // A single thread: the kernel signals mpirun when the thread that started it exits.
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => ExitCode::from(runtime.block_on(supervise(arguments))),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "arinar-launcher: error: {error}");
            ExitCode::from(exit_code::FAILED)
        }
    }
}
