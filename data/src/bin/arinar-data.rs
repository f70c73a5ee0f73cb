//! `arinar-data`: pictures to datasets of latents, and what one wants to know about them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use arinar_data::convert::{self, ConvertArgs};
use arinar_data::encode::{self, EncodeArgs, EncodeError};
use arinar_data::error::DataError;
use arinar_data::inspect;
use arinar_data::manifest::Manifest;
use arinar_data::ranks::{Ranks, launched_rank};
use arinar_data::store::{Store, StoreError};
use arinar_data::train_vae::{self, TrainVaeArgs};
use arinar_data::verify::{Repair, verify};
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
    }
    Ok(ExitCode::SUCCESS)
}

/// What rank 0 has to say; the others have nothing.
fn say(summary: &str) {
    if !summary.is_empty() {
        println!("{summary}");
    }
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
    let store = matches!(error.downcast_ref(), Some(StoreError::Url { .. }));
    if encode || data || store { CONFIGURATION } else { FAILED }
}
