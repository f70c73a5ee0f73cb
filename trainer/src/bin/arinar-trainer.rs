//! `mpirun -n N arinar-trainer --config X`: trains a model; see DESIGN sections 6 and 7.

use std::process::ExitCode;

use arinar_trainer::{
    affinity, allocator,
    collective::{Collective, Launch, MpiCollective, Single},
    config::LogFormat,
    exit::{self, Stop},
    export::{Export, Which},
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
    #[arg(long, required_unless_present = "export")]
    config: Option<String>,
    /// Replaces a value of the configuration, e.g. --set optim.epochs=2; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// How progress is written
    #[arg(long)]
    log_format: Option<LogFormat>,
    /// Begins a new run with the weights (model, model_ema) of an official checkpoint-last.pth, or of an export; a path
    /// or store URL. Where run.dir holds a checkpoint already, training goes on from that and FILE is not read
    #[arg(long, value_name = "FILE", conflicts_with = "export")]
    import: Option<String>,
    /// Trains nothing: writes weights of --run as one safetensors file under the official names; a path or store URL
    #[arg(long, value_name = "FILE", requires = "run", conflicts_with_all = ["config", "overrides"])]
    export: Option<String>,
    /// With --export: the run (run.dir of its configuration), or one of its checkpoints
    #[arg(long, value_name = "URL", requires = "export")]
    run: Option<String>,
    /// With --export: the moving averages or the weights as trained
    #[arg(long, value_enum, default_value_t, requires = "export")]
    weights: Which,
    /// With --export: the checkpoint of this step [default: the newest]
    #[arg(long, value_name = "N", requires = "export")]
    step: Option<u64>,
}

impl Arguments {
    fn export(&self) -> Option<Export> {
        let (file, run) = (self.export.clone()?, self.run.clone()?);
        Some(Export { file, run, which: self.weights, step: self.step })
    }
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
    if let Some(export) = arguments.export() {
        return write_export(&export, rank);
    }
    let options = Options {
        config: arguments.config.unwrap_or_default(),
        overrides: arguments.overrides,
        log_format: arguments.log_format,
    };
    let config = options.load();
    let collective: Box<dyn Collective> = match launch.map(|_| MpiCollective::start()) {
        None => Box::new(Single),
        Some(Ok(collective)) => Box::new(collective),
        Some(Err(error)) => return Stop::failure(error).report("arinar-trainer", rank),
    };
    if launch.is_some() {
        end_on_panic();
    }
    match run::run(collective.as_ref(), Placement { launch, threads }, config, arguments.import.as_deref()) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(stop) => stop.report("arinar-trainer", rank),
    }
}

/// One rank is enough, should somebody start several.
fn write_export(export: &Export, rank: usize) -> ExitCode {
    if rank != 0 {
        return ExitCode::from(exit::DONE);
    }
    match export.write() {
        Ok(said) => println!("{said}"),
        Err(stop) => return stop.report("arinar-trainer", rank),
    }
    ExitCode::from(exit::DONE)
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
