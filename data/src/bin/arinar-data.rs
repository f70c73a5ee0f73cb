//! `arinar-data`: pictures to datasets of latents, and what one wants to know about them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use arinar_data::DataError;
use arinar_data::commands::bench::{open_shards, read_records};
use arinar_data::commands::convert::{self, ConvertArgs};
use arinar_data::commands::encode::{self, EncodeArgs, EncodeError};
use arinar_data::commands::inspect;
use arinar_data::commands::simulate::{self, SimulateArgs};
use arinar_data::commands::train_vae::{self, TrainVaeArgs};
use arinar_data::commands::verify::{Repair, verify};
use arinar_data::format::Manifest;
use arinar_data::ranks::{Ranks, launched_rank};
use arinar_data::read::Dataset;
use arinar_data::read::cache::CacheConfig;
use arinar_store::{Store, StoreError};
use clap::{Args, Parser};

/// Something is wrong that other options would not cure.
const FAILED: u8 = 1;
/// The command line, or what it points to, must be changed.
const CONFIGURATION: u8 = 78;

/// Makes and checks ARINAR's datasets.
#[derive(Parser)]
#[command(name = "arinar-data", version, about)]
enum Command {
    /// Encode pictures with a VAE into a dataset; under mpirun the ranks share the work, and a killed run goes on
    Encode(EncodeArgs),
    /// Convert the official code's cached latents, a folder of .npz files, into a dataset; shared and resumed as encode
    Convert(ConvertArgs),
    /// Train a small VAE for pictures that are not ImageNet
    TrainVae(TrainVaeArgs),
    /// Say what a dataset holds
    Inspect {
        /// Where the dataset is
        url: String,
        /// Print the manifest as JSON
        #[arg(long)]
        json: bool,
    },
    /// Check every shard of a dataset; exits 1 when one is damaged and stays so
    Verify(VerifyArgs),
    /// Say what a job would fetch, keep in its cache, and how well it would shuffle, from the manifest alone
    Simulate(SimulateArgs),
    /// Measure how fast records are read and verified in random order
    Bench(BenchArgs),
}

#[derive(Args)]
struct BenchArgs {
    /// Where the dataset is
    #[arg(long, value_name = "URL")]
    data: String,
    /// Time for each of the two measures
    #[arg(long, default_value_t = 10, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Folder for copies of a remote dataset's shards [default: a fresh one that is deleted afterwards]
    #[arg(long, value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
}

#[derive(Args)]
struct VerifyArgs {
    /// Where the dataset is
    url: String,
    /// Check every record too
    #[arg(long)]
    deep: bool,
    /// Replace damaged shards by copies that verify: from the cache folder, else from --from
    #[arg(long)]
    repair: bool,
    /// With --repair: a second copy of the dataset
    #[arg(long, value_name = "URL", requires = "repair")]
    from: Option<String>,
    /// With --repair: folder of cached shards [default: the one training uses]
    #[arg(long, value_name = "FOLDER", requires = "repair")]
    cache_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => {
            // Help and version come this way too. All ranks get the same command line, so one is enough to say what
            // is wrong with it; printing fails only when nobody reads.
            if launched_rank() == 0 {
                let _ = error.print();
            }
            return if error.use_stderr() { CONFIGURATION.into() } else { ExitCode::SUCCESS };
        }
    };
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            let message = message(&error);
            if !message.is_empty() {
                eprintln!("arinar-data: {message}");
            }
            exit_code(&error).into()
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Encode(args) => {
            say(&encode::run(&args, &Ranks::from_environment()?)?);
        }
        Command::Convert(args) => say(&convert::run(&args, &Ranks::from_environment()?)?),
        Command::TrainVae(args) => train_vae::run(&args)?,
        Command::Inspect { url, json } => {
            let store = Store::open(&url)?;
            let manifest = Manifest::read(&store)?;
            match json {
                true => println!("{}", serde_json::to_string_pretty(&manifest)?),
                false => println!("{}", inspect::summary(&manifest, store.url())),
            }
        }
        Command::Verify(args) => return report(&args),
        Command::Simulate(args) => {
            let manifest = Manifest::read(&Store::open(&args.data)?)?;
            let findings = simulate::simulate(&manifest, &args)?;
            match args.json {
                true => println!("{}", serde_json::to_string_pretty(&findings)?),
                false => println!("{}", simulate::report(&manifest, &args, &findings)),
            }
        }
        Command::Bench(args) => measure(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What rank 0 has to say; the others have nothing.
fn say(summary: &str) {
    if !summary.is_empty() {
        println!("{summary}");
    }
}

fn measure(args: &BenchArgs) -> Result<()> {
    let limit = Duration::from_secs(args.seconds);
    let temporary = tempfile::tempdir()?;
    let remote = Store::open(&args.data)?.local_path("").is_none();
    let fresh = remote.then(|| temporary.path().to_path_buf());
    let cache = CacheConfig { folder: args.cache_dir.clone().or(fresh), limit: None };
    let dataset = Dataset::open_with_cache(&args.data, cache)?;
    let (opened, cold) = open_shards(&dataset, limit, false)?;
    let what = if dataset.is_cached() { "fetched, mapped and verified" } else { "mapped and verified" };
    println!(
        "cold: {} of {} shards {what} in {:.1} s: {:.2} shards/s, {:.1} MB/s",
        cold.count,
        dataset.manifest.shards.len(),
        cold.time.as_secs_f64(),
        cold.per_second(),
        cold.bytes_per_second() / 1e6
    );
    let warm = read_records(&dataset, &opened, limit, false)?;
    println!(
        "warm: {} records of those shards in random order, verified, in {:.1} s: {:.0} records/s, {:.1} MB/s, one thread",
        warm.count,
        warm.time.as_secs_f64(),
        warm.per_second(),
        warm.bytes_per_second() / 1e6
    );
    Ok(())
}

fn report(args: &VerifyArgs) -> Result<ExitCode> {
    let copies = Repair { cache_folder: args.cache_dir.as_deref(), from: args.from.as_deref() };
    let found = verify(&args.url, args.deep, args.repair.then_some(copies))?;
    for (name, place) in &found.repaired {
        println!("{name} was damaged and is replaced by {place}");
    }
    for (error, tried) in &found.damaged {
        match tried.as_str() {
            "" => eprintln!("arinar-data: {error}"),
            tried => eprintln!("arinar-data: {error}; no copy is whole ({tried})"),
        }
    }
    if found.damaged.is_empty() {
        println!("{} shards with {} records are sound", found.shards, found.records);
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("arinar-data: {} of {} shards are damaged", found.damaged.len(), found.shards);
    Ok(FAILED.into())
}

/// The errors of this crate name their cause themselves; others get it from their chain.
fn message(error: &anyhow::Error) -> String {
    match error.is::<EncodeError>() || error.is::<DataError>() || error.is::<StoreError>() {
        true => error.to_string(),
        false => format!("{error:#}"),
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let encode = error.downcast_ref::<EncodeError>().is_some_and(EncodeError::is_configuration);
    let data = error.downcast_ref::<DataError>().is_some_and(DataError::is_configuration);
    let store = error.downcast_ref::<StoreError>().is_some_and(StoreError::is_configuration);
    if encode || data || store { CONFIGURATION } else { FAILED }
}
