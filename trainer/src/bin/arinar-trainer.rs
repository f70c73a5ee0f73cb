//! `mpirun -n N arinar-trainer --config X`: trains a model. ARCHITECTURE.md describes how a batch and a checkpoint travel.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::{io::Write, process::ExitCode, sync::Arc};

use arinar_collective::{
    LaunchEnvironment, connect,
    machine::{affinity, allocator, open_files},
};
use arinar_data::{Reporter, answer_without_command};
use arinar_protocol::{Farewell, Phase, exit_code};
use arinar_trainer::{
    Export, LogFormat, Options, Preemption, RankContext, Startup, Stop, Vitals, Weights, agree_on_config, check,
    check_collectives, heartbeat, panic_hook, plan, process_exit::exit_now, shutdown,
};
use clap::Parser;
use tch::Device;

/// Trains an ARINAR model on one or more ranks, which are started with mpirun.
///
/// Exit codes: 0 after success, 75 if the run was preempted by SIGTERM or SIGUSR1 and saved a checkpoint, 78 after a
/// configuration error, 1 after any other error.
#[derive(Parser)]
#[command(name = "arinar-trainer", version)]
struct Arguments {
    /// Read the configuration from this file, or from the file of this name in configs/
    #[arg(long, required_unless_present = "export")]
    config: Option<String>,
    /// Override a value of the configuration, for example --set optim.epochs=2; may be repeated
    ///
    /// VALUE has the meaning that it has after KEY: in the file.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print the checked configuration as JSON with all defaults filled in, without training
    #[arg(long, conflicts_with = "export")]
    print_config: bool,
    /// Check everything that a run needs (configuration, stores, disks, memory, versions) on every host, without training
    ///
    /// Prints one line per finding. The exit code is 0 without problems and 78 otherwise. Leaves nothing behind and does not
    /// disturb a run in progress.
    #[arg(long, conflicts_with_all = ["export", "plan"])]
    check: bool,
    /// Print the parameters, operations, memory, traffic and ETA of a run from ten rehearsed steps, without training
    ///
    /// Also prints estimates for GPUs. Writes no files.
    #[arg(long, conflicts_with_all = ["export", "import"])]
    plan: bool,
    /// Write progress, findings and plans in this format
    #[arg(long)]
    log_format: Option<LogFormat>,
    /// Start a new run with the weights (model, model_ema) of an official checkpoint-last.pth or of an export
    ///
    /// FILE is a path or store URL. Names may have the prefixes of DistributedDataParallel and torch.compile. If run.dir already
    /// holds a checkpoint, training resumes from it and FILE is not read.
    #[arg(long, value_name = "FILE", conflicts_with = "export")]
    import: Option<String>,
    /// Write the weights of --run to one safetensors file under the official names, without training
    ///
    /// FILE is a path or store URL.
    #[arg(long, value_name = "FILE", requires = "run", conflicts_with_all = ["config", "overrides"])]
    export: Option<String>,
    /// Export from this run (run.dir of its configuration), or from this one of its checkpoints
    #[arg(long, value_name = "URL", requires = "export")]
    run: Option<String>,
    /// Export these weights
    #[arg(long, value_enum, default_value_t, requires = "export")]
    weights: Weights,
    /// Export from the checkpoint of this step [default: the newest]
    #[arg(long, value_name = "N", requires = "export")]
    step: Option<u64>,
}

impl Arguments {
    fn export(&self) -> Option<Export> {
        let (file, run) = (self.export.clone()?, self.run.clone()?);
        Some(Export { file, run, weights: self.weights, step: self.step })
    }
}

const PROGRAM: &str = "arinar-trainer";

/// The work that the ranks do together.
enum Task {
    Train { import: Option<String> },
    Check { import: Option<String> },
    Plan,
}

fn main() -> ExitCode {
    let vitals = Arc::new(Vitals::start());
    allocator::release_freed_memory();
    open_files::raise_limit();
    let launch = LaunchEnvironment::from_environment();
    let rank = launch.map_or(0, |launch| launch.rank);
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return answer_without_command(PROGRAM, &error, rank == 0).into(),
    };
    if let Some(export) = arguments.export() {
        let written = || export.write().map(|message| Reporter::console().print(&message));
        return on_rank_0(rank, written);
    }
    let options = Options {
        config: arguments.config.unwrap_or_default(),
        overrides: arguments.overrides,
        log_format: arguments.log_format,
    };
    if arguments.print_config {
        let printed = || Ok(Reporter::console().result(&config_as_json(&options)?)?);
        return on_rank_0(rank, printed);
    }
    let task = match arguments.import {
        import if arguments.check => Task::Check { import },
        _ if arguments.plan => Task::Plan,
        import => Task::Train { import },
    };
    match run(&options, &task, launch, vitals) {
        Ok(()) => {
            heartbeat::farewell(Farewell::new(exit_code::DONE, None));
            ExitCode::from(exit_code::DONE)
        }
        Err(stop) => shutdown::report(PROGRAM, rank, &stop),
    }
}

/// Runs a task on this rank, together with the other ranks.
fn run(options: &Options, task: &Task, launch: Option<LaunchEnvironment>, vitals: Arc<Vitals>) -> Result<(), Stop> {
    let is_launched = launch.is_some();
    let place = launch.unwrap_or_else(LaunchEnvironment::single);
    panic_hook::install(place.rank, Arc::clone(&vitals));
    if !matches!(task, Task::Check { .. }) {
        open_files::check_limit().map_err(Stop::configuration)?;
    }
    let config = options.load();
    // Problems of the configuration and of GPUs are reported by all ranks together, once they are connected.
    let device = match &config {
        Ok(config) => config.train.device.device(place.local_rank).map_err(Stop::configuration),
        Err(error) => Err(Stop::configuration(error.to_string())),
    };
    let on_gpu = matches!(device, Ok(Device::Cuda(_)));
    let threads = affinity::bind_to_share(place.local_rank, place.local_world_size, is_launched, on_gpu);
    if is_launched {
        heartbeat::die_with_parent();
    }
    let preemption = match task {
        Task::Train { .. } => watch_signals(Arc::clone(&vitals)).map_err(Stop::failure)?,
        // There is nothing to save: a signal ends the process at once.
        Task::Check { .. } | Task::Plan => Preemption::default(),
    };
    let launcher = heartbeat::start(launch, Arc::clone(&vitals)).map_err(Stop::failure)?;
    let ranks = connect(launch)?;
    if let Task::Check { import } = task {
        // Problems of GPUs are findings like any other.
        let device = device.unwrap_or(Device::Cpu);
        let collective = ranks.collective();
        let context = RankContext { collective, launch: place, device, threads, launcher, preemption, vitals };
        let format = check(&context, options.read(), options.log_format, import.as_deref())?;
        if ranks.uses_host_memory(device) {
            return Ok(());
        }
        let collective = ranks.over(device)?;
        return check_collectives(collective.as_ref(), device, format)
            .inspect_err(|stop| exit_if_broken(place.rank, stop));
    }
    let (collective, device) = ranks.with(device)?;
    let collective = collective.as_ref();
    let context = RankContext { collective, launch: place, device, threads, launcher, preemption, vitals };
    let config = agree_on_config(&context, config)?;
    match task {
        Task::Train { import } => {
            let mut training = Startup::new(context, &config)?.training(import.as_deref())?;
            training.run().inspect_err(|stop| exit_if_broken(place.rank, stop))
        }
        Task::Check { .. } | Task::Plan => plan(context, &config),
    }
}

/// Exits at once if NCCL or CUDA is broken: an orderly end waits for threads, and they wait for the network, while other ranks
/// may be blocked in NCCL until this process exits.
fn exit_if_broken(rank: usize, stop: &Stop) {
    if let Stop::Broken(_) = stop {
        shutdown::report(PROGRAM, rank, stop);
        exit_now(exit_code::FAILED);
    }
}

/// Catches SIGTERM and SIGUSR1. If one arrives during start-up and start-up takes long, the process exits.
fn watch_signals(vitals: Arc<Vitals>) -> std::io::Result<Preemption> {
    let is_starting = move || vitals.time.read().phase == Phase::StartUp;
    let abandon = || {
        let reason = Stop::NotBegun.to_string();
        // Standard error may be closed.
        let _ = writeln!(std::io::stderr(), "{PROGRAM}: {reason}");
        heartbeat::farewell(Farewell::new(exit_code::PREEMPTED, Some(reason)));
        exit_now(exit_code::PREEMPTED);
    };
    Preemption::watch(is_starting, abandon)
}

/// Does work that one rank does alone.
fn on_rank_0(rank: usize, work: impl FnOnce() -> Result<(), Stop>) -> ExitCode {
    match if rank == 0 { work() } else { Ok(()) } {
        Ok(()) => ExitCode::from(exit_code::DONE),
        Err(stop) => shutdown::report(PROGRAM, rank, &stop),
    }
}

fn config_as_json(options: &Options) -> Result<String, Stop> {
    let config = options.load().map_err(Stop::configuration)?;
    serde_json::to_string_pretty(&config).map_err(Stop::failure)
}
