//! `mpirun -n N arinar-trainer --config X`: trains a model; ARCHITECTURE.md says how a batch
//! and a checkpoint travel.

use std::{io::Write, process::ExitCode, sync::Arc};

use arinar_collective::{
    LaunchEnvironment, connect,
    machine::{affinity, allocator},
};
use arinar_trainer::{
    config::LogFormat,
    estimate,
    exit::{self, Preemption, Stop},
    export::{Export, Which},
    heartbeat, preflight,
    run::{self, Options, Placement},
    vitals::Vitals,
};
use clap::Parser;
use tch::Device;

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
    /// Trains nothing: prints the configuration as JSON, checked, with every default filled in
    #[arg(long, conflicts_with = "export")]
    print_config: bool,
    /// Trains nothing: looks at everything a run needs (configuration, stores, disks, memory, versions) and says line by
    /// line what is well and what is not. Ends with 0 if all is well, with 78 if not. Leaves nothing behind, and does
    /// not disturb a run. Under mpirun every machine looks
    #[arg(long, conflicts_with_all = ["export", "import", "plan"])]
    check: bool,
    /// Trains nothing: prints parameters, operations, memory, sizes, traffic and an ETA from ten steps rehearsed in
    /// memory, and estimates for GPUs. Writes nothing
    #[arg(long, conflicts_with_all = ["export", "import"])]
    plan: bool,
    /// How progress is written, and findings and plan: as text or JSON
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
    let vitals = Arc::new(Vitals::start());
    allocator::release_freed_memory();
    let launch = LaunchEnvironment::from_environment();
    let rank = launch.map_or(0, |launch| launch.rank);
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return command_line_error(&error, rank),
    };
    if let Some(export) = arguments.export() {
        return write_export(&export, rank);
    }
    let print_config = arguments.print_config;
    let task = match arguments.import {
        _ if arguments.check => Task::Check,
        _ if arguments.plan => Task::Plan,
        import => Task::Train { import },
    };
    let options = Options {
        config: arguments.config.unwrap_or_default(),
        overrides: arguments.overrides,
        log_format: arguments.log_format,
    };
    if print_config {
        return write_config(&options, rank);
    }
    match take_part(&options, &task, launch, vitals) {
        Ok(()) => {
            heartbeat::farewell(exit::DONE, None);
            ExitCode::from(exit::DONE)
        }
        Err(stop) => stop.report("arinar-trainer", rank),
    }
}

/// What ranks do together.
enum Task {
    Train { import: Option<String> },
    Check,
    Plan,
}

/// What a rank does from here on until it is done.
fn take_part(
    options: &Options,
    task: &Task,
    launch: Option<LaunchEnvironment>,
    vitals: Arc<Vitals>,
) -> Result<(), Stop> {
    let (local_rank, local_world_size) = launch.map_or((0, 1), |launch| (launch.local_rank, launch.local_world_size));
    end_on_panic(launch.map_or(0, |launch| launch.rank), Arc::clone(&vitals));
    let config = options.load();
    // What is wrong with it, or with the GPUs, is told by all ranks together, once they are connected.
    let device = match &config {
        Ok(config) => config.train.device.device(local_rank).map_err(Stop::configuration),
        Err(error) => Err(Stop::configuration(error)),
    };
    let on_gpu = matches!(device, Ok(Device::Cuda(_)));
    let threads = affinity::bind_to_share(local_rank, local_world_size, launch.is_some(), on_gpu);
    if launch.is_some() {
        heartbeat::die_with_parent();
    }
    let preemption = match task {
        Task::Train { .. } => Preemption::watch(Arc::clone(&vitals)).map_err(Stop::failure)?,
        // There is nothing to save: a signal ends it at once.
        Task::Check | Task::Plan => Preemption::default(),
    };
    let launcher = heartbeat::start(launch, Arc::clone(&vitals)).map_err(Stop::Failure)?;
    let ranks = connect(launch)?;
    let place = |device| Placement { launch, device, threads, launcher, preemption, vitals };
    match task {
        Task::Train { import } => {
            let (collective, device) = ranks.with(device)?;
            run::run(collective.as_ref(), place(device), config, import.as_deref())
        }
        Task::Check => {
            // It tells what is wrong with the GPUs itself, beside everything else.
            let placement = place(device.unwrap_or(Device::Cpu));
            let device = placement.device;
            let format = preflight::check(ranks.collective(), &placement, options.read(), options.log_format)?;
            if ranks.uses_host_memory(device) {
                return Ok(());
            }
            preflight::check_together(ranks.over(device)?.as_ref(), device, format)
        }
        Task::Plan => {
            let (collective, device) = ranks.with(device)?;
            estimate::plan(collective.as_ref(), &place(device), config)
        }
    }
}

/// For people, and for the launcher.
fn write_config(options: &Options, rank: usize) -> ExitCode {
    let config = options.load().map_err(Stop::configuration);
    match config.and_then(|config| serde_json::to_string_pretty(&config).map_err(Stop::failure)) {
        Ok(_) if rank != 0 => {}
        Ok(text) => println!("{text}"),
        Err(stop) => return stop.report("arinar-trainer", rank),
    }
    ExitCode::from(exit::DONE)
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

/// A rank that unwound would wait in MPI for the others, and they for it. What libtorch reports where nothing else can
/// be done, no memory above all, comes as a panic, too: it gets its one line. A rehearsal without memory is no end.
fn end_on_panic(rank: usize, vitals: Arc<Vitals>) {
    std::panic::set_hook(Box::new(move |panic| {
        let beat = vitals.beat();
        let told = panic.payload_as_str().unwrap_or("no message");
        if estimate::is_forgiven(told) {
            return;
        }
        let reason = exit::panic_reason(rank, &beat, told, panic.location().map(ToString::to_string).as_deref());
        // Nobody may be there to read it any more.
        let _ = writeln!(std::io::stderr(), "arinar-trainer: error: {reason}");
        heartbeat::farewell(exit::FAILED, Some(reason));
        exit::at_once(exit::FAILED);
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
