//! `arinar-data`: makes, inspects, verifies and repairs datasets of latents.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use arinar_collective::{WorkGroup, launched_rank, machine::open_files};
use arinar_data::commands::EncodeError;
use arinar_data::commands::bench::{open_shards, read_records};
use arinar_data::commands::convert::{self, ConvertArgs};
use arinar_data::commands::encode::{self, EncodeArgs};
use arinar_data::commands::inspect;
use arinar_data::commands::simulate::{self, SimulateArgs};
use arinar_data::commands::train_vae::{self, TrainVaeArgs, TrainVaeError};
use arinar_data::commands::verify::{Repair, verify};
use arinar_data::format::Manifest;
use arinar_data::read::Dataset;
use arinar_data::read::cache::CacheConfig;
use arinar_data::{DataError, OutputError, Reporter, answer_without_command};
use arinar_place::{OptionError, Place, local_path, of_option};
use arinar_protocol::exit_code;
use arinar_store::{Store, StoreError};
use clap::{Args, Parser};

/// Make and verify the datasets of ARINAR
#[derive(Parser)]
#[command(name = "arinar-data", version, about)]
enum Command {
    /// Encode pictures with a VAE as a dataset, sharing the work under mpirun and resuming an interrupted run
    Encode(EncodeArgs),
    /// Convert cached latents of the official code (.npz files) to a dataset, sharing the work under mpirun
    Convert(ConvertArgs),
    /// Train a small VAE for pictures other than ImageNet
    TrainVae(TrainVaeArgs),
    /// Summarize a dataset
    Inspect {
        /// URL or folder of the dataset
        url: String,
        /// Print the manifest as JSON
        #[arg(long)]
        json: bool,
    },
    /// Verify every shard of a dataset and exit with code 1 if any remains damaged
    Verify(VerifyArgs),
    /// Predict the downloads, the cache size and the shuffle quality of a job from the manifest alone
    Simulate(SimulateArgs),
    /// Measure how fast records are read and verified in random order
    Bench(BenchArgs),
}

#[derive(Args)]
struct BenchArgs {
    /// Read this dataset
    #[arg(long, value_name = "URL")]
    data: String,
    /// Spend this number of seconds on each of the two measurements
    #[arg(long, default_value_t = 10, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Cache the shards of a remote dataset in this folder [default: a temporary one]
    #[arg(long, value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
}

#[derive(Args)]
struct VerifyArgs {
    /// URL or folder of the dataset
    url: String,
    /// Verify every record as well
    #[arg(long)]
    deep: bool,
    /// Replace damaged shards by intact copies from the cache folder or from --from
    #[arg(long)]
    repair: bool,
    /// Use this second copy of the dataset with --repair
    #[arg(long, value_name = "URL", requires = "repair")]
    from: Option<String>,
    /// Use the shards in this cache folder with --repair [default: the cache folder of training]
    #[arg(long, value_name = "FOLDER", requires = "repair")]
    cache_dir: Option<PathBuf>,
}

impl Command {
    /// Makes local paths absolute, and checks all places before any work.
    ///
    /// # Errors
    /// Returns an error that names the option.
    fn resolve_places(&mut self) -> Result<(), OptionError> {
        match self {
            Self::Encode(args) => {
                resolve("--images", &mut args.images)?;
                resolve("--vae", [&mut args.vae])?;
                check("--out", &args.out)
            }
            Self::Convert(args) => {
                resolve("--from", &mut args.from)?;
                resolve("--vae", &mut args.vae)?;
                check("--out", &args.out)
            }
            Self::TrainVae(args) => {
                resolve("--images", &mut args.images)?;
                resolve("--out", [&mut args.out])
            }
            Self::Inspect { url, .. } => check("URL", url),
            Self::Verify(args) => {
                resolve("--cache-dir", &mut args.cache_dir)?;
                check("URL", &args.url)?;
                args.from.as_deref().map_or(Ok(()), |from| check("--from", from))
            }
            Self::Simulate(args) => check("--data", &args.data),
            Self::Bench(args) => {
                resolve("--cache-dir", &mut args.cache_dir)?;
                check("--data", &args.data)
            }
        }
    }
}

/// Makes the local paths of an option absolute.
fn resolve<'a>(option: &'static str, paths: impl IntoIterator<Item = &'a mut PathBuf>) -> Result<(), OptionError> {
    for path in paths {
        *path = of_option(option, local_path(path))?;
    }
    Ok(())
}

/// Checks the place of an option.
fn check(option: &'static str, place: &str) -> Result<(), OptionError> {
    of_option(option, Place::parse(place)).map(drop)
}

fn main() -> ExitCode {
    open_files::raise_limit();
    let reporter = reporter();
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => {
            // Help and version are errors of clap too.
            return answer_without_command("arinar-data", &error, launched_rank().unwrap_or(0) == 0).into();
        }
    };
    match run(command, &reporter) {
        Ok(code) => code,
        Err(error) => {
            let message = message(&error);
            // Every rank has the same command line.
            let is_repeated = error.is::<OptionError>() && launched_rank().unwrap_or(0) != 0;
            if !message.is_empty() && !is_repeated {
                reporter.note(&format!("arinar-data: {message}"));
            }
            exit_code_of(&error).into()
        }
    }
}

fn run(mut command: Command, reporter: &Reporter) -> Result<ExitCode> {
    command.resolve_places()?;
    match command {
        Command::Encode(args) => {
            print_summary(&encode::run(&args, &WorkGroup::from_environment()?, reporter)?, reporter);
        }
        Command::Convert(args) => {
            print_summary(&convert::run(&args, &WorkGroup::from_environment()?, reporter)?, reporter);
        }
        Command::TrainVae(args) => train_vae::run(&args, reporter)?,
        Command::Inspect { url, json } => {
            let store = Store::open(&url)?;
            let manifest = Manifest::read(&store)?;
            reporter.result(&match json {
                true => serde_json::to_string_pretty(&manifest)?,
                false => inspect::summary(&manifest, store.url()),
            })?;
        }
        Command::Verify(args) => return verify_dataset(&args, reporter),
        Command::Simulate(args) => {
            let manifest = Manifest::read(&Store::open(&args.data)?)?;
            let findings = simulate::simulate(&manifest, &args)?;
            reporter.result(&match args.json {
                true => serde_json::to_string_pretty(&findings)?,
                false => simulate::report(&manifest, &args, &findings),
            })?;
        }
        Command::Bench(args) => measure(&args, reporter)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Only rank 0 shows progress.
fn reporter() -> Reporter {
    if launched_rank().unwrap_or(0) == 0 { Reporter::console() } else { Reporter::without_progress() }
}

/// Prints the summary of rank 0. Those of the other ranks are empty.
fn print_summary(summary: &str, reporter: &Reporter) {
    if !summary.is_empty() {
        reporter.print(summary);
    }
}

fn measure(args: &BenchArgs, reporter: &Reporter) -> Result<()> {
    let limit = Duration::from_secs(args.seconds);
    let temporary = tempfile::tempdir()?;
    let remote = Store::open(&args.data)?.local_path("").is_none();
    let fresh = remote.then(|| temporary.path().to_path_buf());
    let cache = CacheConfig { folder: args.cache_dir.clone().or(fresh), limit: None };
    let dataset = Dataset::open_with_cache(&args.data, cache, reporter.clone())?;
    let (opened, cold) = open_shards(&dataset, limit, reporter)?;
    let what = if dataset.is_cached() { "fetched, mapped and verified" } else { "mapped and verified" };
    reporter.result(&format!(
        "cold: {} of {} shards {what} in {:.1} s: {:.2} shards/s, {:.1} MB/s",
        cold.count,
        dataset.manifest.shards.len(),
        cold.time.as_secs_f64(),
        cold.per_second(),
        cold.bytes_per_second() / 1e6
    ))?;
    let warm = read_records(&dataset, &opened, limit, reporter)?;
    reporter.result(&format!(
        "warm: {} records of those shards in random order, verified, in {:.1} s: {:.0} records/s, {:.1} MB/s, one thread",
        warm.count,
        warm.time.as_secs_f64(),
        warm.per_second(),
        warm.bytes_per_second() / 1e6
    ))?;
    Ok(())
}

fn verify_dataset(args: &VerifyArgs, reporter: &Reporter) -> Result<ExitCode> {
    let copies = Repair { cache_folder: args.cache_dir.as_deref(), from: args.from.as_deref() };
    let found = verify(&args.url, args.deep, args.repair.then_some(copies), reporter)?;
    for (name, location) in &found.repaired {
        reporter.result(&format!("{name} was damaged and has been replaced by {location}"))?;
    }
    for (error, tried) in &found.damaged {
        reporter.note(&match tried.as_str() {
            "" => format!("arinar-data: {error}"),
            tried => format!("arinar-data: {error}; no copy is intact ({tried})"),
        });
    }
    if found.damaged.is_empty() {
        reporter.result(&format!("{} shards with {} records are sound", found.shards, found.records))?;
        return Ok(ExitCode::SUCCESS);
    }
    reporter.note(&format!("arinar-data: {} of {} shards are damaged", found.damaged.len(), found.shards));
    Ok(exit_code::FAILED.into())
}

/// Formats an error. The messages of this crate include their causes, those of other crates do not. The message is empty if
/// there is nothing to say.
fn message(error: &anyhow::Error) -> String {
    if let Some(output) = error.downcast_ref::<OutputError>() {
        return if output.is_closed_pipe() { String::new() } else { output.to_string() };
    }
    let is_own = error.is::<EncodeError>() || error.is::<TrainVaeError>() || error.is::<DataError>();
    match is_own || error.is::<StoreError>() || error.is::<OptionError>() {
        true => error.to_string(),
        false => format!("{error:#}"),
    }
}

fn exit_code_of(error: &anyhow::Error) -> u8 {
    let encode = error.downcast_ref::<EncodeError>().is_some_and(EncodeError::is_configuration);
    let vae = error.downcast_ref::<TrainVaeError>().is_some_and(TrainVaeError::is_configuration);
    let data = error.downcast_ref::<DataError>().is_some_and(DataError::is_configuration);
    let store = error.downcast_ref::<StoreError>().is_some_and(StoreError::is_configuration);
    let option = error.is::<OptionError>();
    if encode || vae || data || store || option { exit_code::CONFIGURATION } else { exit_code::FAILED }
}
