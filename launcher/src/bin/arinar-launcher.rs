//! `arinar-launcher --config X`: starts, watches and restarts a training job; see --help.

use std::process::ExitCode;

use arinar_launcher::{arguments::Arguments, supervise};
use arinar_protocol::exit_code;

fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err((text, code)) => {
            // Nothing is left to do if even this cannot be written.
            if code == exit_code::DONE {
                anstream::print!("{text}")
            } else {
                anstream::eprint!("{text}")
            }
            return ExitCode::from(code);
        }
    };
    // One thread: the kernel ends mpirun when the thread that started it ends.
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => ExitCode::from(runtime.block_on(supervise::supervise(arguments))),
        Err(error) => {
            eprintln!("arinar-launcher: error: {error}");
            ExitCode::from(exit_code::FAILED)
        }
    }
}
