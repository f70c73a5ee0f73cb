//! `mpirun -n N arinar-trainer --config X`: trains a model; see DESIGN sections 6 and 7.

use std::process::ExitCode;

use arinar_trainer::{
    affinity, allocator,
    collective::{Collective, Launch, MpiCollective, Single},
    config::LogFormat,
    exit::{self, Stop},
    run::{self, Options, Placement},
};
use clap::Parser;

/// Trains an ARINAR model on one or more ranks (start them with mpirun).
///
/// Exit codes: 0 done, 75 ended by SIGTERM or SIGUSR1 after a checkpoint, 78 configuration error,
/// 1 anything else.
#[derive(Parser)]
#[command(name = "arinar-trainer", version)]
struct Arguments {
    /// Configuration file, or the name of one in configs/
    #[arg(long)]
    config: String,
    /// Replaces a value of the configuration, e.g. --set optim.epochs=2; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// How progress is written
    #[arg(long)]
    log_format: Option<LogFormat>,
}

fn main() -> ExitCode {
    allocator::release_freed_memory();
    let launch = Launch::from_environment();
    let rank = launch.map_or(0, |launch| launch.rank);
    let (local_rank, local_world) = launch.map_or((0, 1), |launch| (launch.local_rank, launch.local_world));
    let threads = affinity::take_share(local_rank, local_world, launch.is_some());
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return command_line_error(&error, rank),
    };
    let options =
        Options { config: arguments.config, overrides: arguments.overrides, log_format: arguments.log_format };
    let config = options.load();
    let collective: Box<dyn Collective> = match launch.map(|_| MpiCollective::start()) {
        None => Box::new(Single),
        Some(Ok(collective)) => Box::new(collective),
        Some(Err(error)) => return Stop::failure(error).report("arinar-trainer", rank),
    };
    if launch.is_some() {
        end_on_panic();
    }
    match run::run(collective.as_ref(), Placement { launch, threads }, config) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(stop) => stop.report("arinar-trainer", rank),
    }
}

/// A rank that unwound would wait in MPI for the others, and they for it.
fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::exit(exit::FAILED.into());
    }));
}

/// Help and version end well; a wrong argument is a configuration error that rank 0 alone tells.
fn command_line_error(error: &clap::Error, rank: usize) -> ExitCode {
    if rank == 0 {
        // Nothing is left to do if even this cannot be written.
        let _ = error.print();
    }
    ExitCode::from(if error.use_stderr() { exit::CONFIGURATION } else { exit::DONE })
}
