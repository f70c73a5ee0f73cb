//! `arinar-data`: pictures to datasets of latents, and what one wants to know about them.

use std::process::ExitCode;

use anyhow::Result;
use arinar_data::encode::{self, EncodeArgs, EncodeError};
use arinar_data::error::DataError;
use arinar_data::inspect;
use arinar_data::manifest::Manifest;
use arinar_data::ranks::{Ranks, launched_rank};
use arinar_data::store::{Store, StoreError};
use arinar_data::train_vae::{self, TrainVaeArgs};
use arinar_data::verify::verify;
use clap::Parser;

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
    /// Check every shard of a dataset; exits 1 when one is damaged
    Verify {
        /// Where the dataset is
        url: String,
        /// Check every record too
        #[arg(long)]
        deep: bool,
    },
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
            let summary = encode::run(&args, &Ranks::from_environment()?)?;
            if !summary.is_empty() {
                println!("{summary}");
            }
        }
        Command::TrainVae(args) => train_vae::run(&args)?,
        Command::Inspect { url, json } => {
            let store = Store::open(&url)?;
            let manifest = Manifest::read(&store)?;
            match json {
                true => println!("{}", serde_json::to_string_pretty(&manifest)?),
                false => println!("{}", inspect::summary(&manifest, store.url())),
            }
        }
        Command::Verify { url, deep } => return report(&url, deep),
    }
    Ok(ExitCode::SUCCESS)
}

fn report(url: &str, deep: bool) -> Result<ExitCode> {
    let found = verify(url, deep)?;
    if found.damaged.is_empty() {
        println!("{} shards with {} records are sound", found.shards, found.records);
        return Ok(ExitCode::SUCCESS);
    }
    for error in &found.damaged {
        eprintln!("arinar-data: {error}");
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
