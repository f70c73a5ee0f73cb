//! `arinar-data encode`: pictures to a dataset of latents.
//!
//! Each rank makes every world-th shard; rank 0 collects what the ranks did and writes the manifest, which makes the
//! dataset exist. Shards of a killed run are checked and kept.

mod agree;
mod existing;
mod finish;
mod pictures;
mod plan;
mod share;

use std::path::PathBuf;

use arinar_model::vae::{LoadedVae, load_vae};
use arinar_model::weights::WeightsError;
use clap::Args;
use tch::Device;
use thiserror::Error;

use crate::error::DataError;
use crate::manifest::Manifest;
use crate::progress::Progress;
use crate::ranks::Ranks;
use crate::source::{ImageSource, SourceError};
use crate::store::lease::{Lease, LeaseError};
use crate::store::{Store, StoreError};
use agree::agree;
use plan::{Plan, Settings};

/// Options of `arinar-data encode`.
#[derive(Args, Clone, Debug)]
pub struct EncodeArgs {
    /// Folders (CLASS/NAME) or .tar files of pictures
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub images: Vec<PathBuf>,
    /// Weights of the VAE: safetensors, or the official kl16.ckpt
    #[arg(long, value_name = "FILE")]
    pub vae: PathBuf,
    /// Where the dataset goes: a folder, file://, s3://, gs:// or az://
    #[arg(long, value_name = "URL")]
    pub out: String,
    /// Side of the square pictures; other sizes are scaled and cropped as ADM does
    #[arg(long, default_value_t = 256, value_name = "PIXELS")]
    pub image_size: u32,
    /// Largest size of a shard
    #[arg(long, default_value = "64MiB", value_parser = parse_bytes, value_name = "BYTES")]
    pub shard_bytes: u64,
    /// Pictures encoded at a time
    #[arg(long, default_value_t = 32, value_parser = parse_batch, value_name = "N")]
    pub batch: usize,
    /// Seed of the permutation that spreads the pictures over the shards
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Leave out pictures that do not decode instead of failing at the end
    #[arg(long)]
    pub skip_bad: bool,
    /// Replace another dataset at --out
    #[arg(long)]
    pub overwrite: bool,
    /// CPU threads of each rank (default: the cores of the machine shared among its ranks)
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// Why encoding failed.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// The inputs cannot be listed.
    #[error(transparent)]
    Source(SourceError),
    /// A listed picture cannot be read.
    #[error(transparent)]
    Read(SourceError),
    /// The VAE's weights cannot be loaded.
    #[error(transparent)]
    Vae(#[from] WeightsError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else is writing there.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The manifest failed.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The picture size does not suit the VAE.
    #[error("--image-size {size} is not a positive multiple of the VAE's stride {stride}; use {suggestion}")]
    ImageSize {
        /// The size given.
        size: u32,
        /// Pixels per latent position.
        stride: i64,
        /// The nearest size that would do.
        suggestion: i64,
    },
    /// The folder holds a dataset of other pictures or settings.
    #[error("{url} already holds a dataset of other pictures or settings; choose another --out or pass --overwrite")]
    OtherDataset {
        /// URL of the folder.
        url: String,
    },
    /// The folder holds a shard of another unfinished run.
    #[error(
        "{url} was made by an encode run with other pictures or settings; \
         repeat that run's options, choose another --out or pass --overwrite"
    )]
    ForeignShard {
        /// URL of the shard.
        url: String,
    },
    /// The VAE's output cannot be stored.
    #[error("the VAE gives moments for {name} that are not finite in half precision; check the weights given as --vae")]
    NotFinite {
        /// Name of the picture.
        name: String,
    },
    /// A shard file cannot be assembled.
    #[error("assembling a shard failed: {0}")]
    Shard(#[from] safetensors::SafeTensorError),
    /// libtorch failed.
    #[error("encoding failed: {0}")]
    Tensor(#[from] tch::TchError),
    /// The picture decoder panicked; its message was printed.
    #[error("a picture decoder stopped unexpectedly")]
    DecoderPanic,
    /// Some pictures do not decode.
    #[error("{0}")]
    BadPictures(String),
    /// One or more ranks failed.
    #[error("{message}")]
    Ranks {
        /// What each of them said.
        message: String,
        /// Whether a changed command line is the cure.
        configuration: bool,
    },
}

impl EncodeError {
    /// Whether a changed command line is the cure (exit code 78) rather than a repair (exit code 1).
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Source(_) | Self::Vae(_) | Self::ImageSize { .. } => true,
            Self::OtherDataset { .. } | Self::ForeignShard { .. } => true,
            Self::Store(error) | Self::Lease(LeaseError::Store(error)) => error.is_configuration(),
            Self::Data(error) => error.is_configuration(),
            Self::Ranks { configuration, .. } => *configuration,
            _ => false,
        }
    }
}

/// Everything a rank needs to make shards.
pub(crate) struct Job<'a> {
    args: &'a EncodeArgs,
    source: ImageSource,
    vae: LoadedVae,
    store: Store,
    plan: Plan,
    /// Shape of a record's moments: [2C, H, W].
    shape: [usize; 3],
    decoders: usize,
}

/// Encodes; on rank 0 the text returned says what was done, on the others it is empty.
///
/// # Errors
/// On rank 0 what went wrong on any rank; on the others [`EncodeError::Ranks`] without a message of their own.
pub fn run(args: &EncodeArgs, ranks: &Ranks) -> Result<String, EncodeError> {
    let prepared = prepare(args, ranks);
    let identities: Vec<String> = agree(ranks, prepared.as_ref().map(|job| job.plan.encode_id.clone()), |_| ())?;
    if identities.iter().any(|identity| *identity != identities[0]) {
        return Err(EncodeError::Ranks {
            message: "the ranks see different pictures or VAE weights; give all machines the same files".to_owned(),
            configuration: true,
        });
    }
    let job = prepared?;
    let lease = if ranks.rank() == 0 { job.lease().map(Some) } else { Ok(None) };
    agree(ranks, lease.as_ref().map(|_| ()), |_| ())?;
    let lease = lease?;
    let mut progress = Progress::new("pictures", job.source.len() as u64, ranks.rank() != 0);
    let share = job.encode_share(ranks, &mut progress);
    let shares = agree(ranks, share.as_ref(), |reported| progress.advance(reported))?;
    let finished = match &lease {
        Some(lease) => job.finish(shares, &progress, lease),
        None => Ok(String::new()),
    };
    agree(ranks, finished.as_ref().map(|_| ()), |_| ())?;
    finished
}

impl Job<'_> {
    /// The right to write, for all ranks, and another look at what is there: it may be new.
    fn lease(&self) -> Result<Lease, EncodeError> {
        let lease = Lease::acquire(&self.store, "arinar-data encode")?;
        refuse_other_dataset(&self.store, &self.plan, self.args.overwrite)?;
        Ok(lease)
    }
}

fn prepare<'a>(args: &'a EncodeArgs, ranks: &Ranks) -> Result<Job<'a>, EncodeError> {
    let threads = args.threads.unwrap_or_else(|| cores().div_ceil(ranks.local_world())).max(1);
    tch::set_num_threads(threads as i32);
    let source = ImageSource::open(&args.images).map_err(EncodeError::Source)?;
    let device = device(ranks.local_rank());
    let vae = load_vae(&args.vae, device)?;
    let grid = latent_grid(args.image_size, vae.config.stride())?;
    let shape = [2 * vae.config.embed_dim as usize, grid, grid];
    let settings = Settings { image_size: args.image_size, seed: args.seed, shard_bytes: args.shard_bytes };
    let plan = Plan::new(&source, &vae, shape, settings);
    let store = Store::open(&args.out)?;
    refuse_other_dataset(&store, &plan, args.overwrite)?;
    // On the CPU the VAE is what takes time; one thread decodes faster than it encodes.
    let decoders = if device == Device::Cpu { 1 } else { threads };
    Ok(Job { args, source, vae, store, plan, shape, decoders })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

fn device(local_rank: usize) -> Device {
    match tch::Cuda::device_count() {
        devices if devices > 0 => Device::Cuda(local_rank % devices as usize),
        _ => Device::Cpu,
    }
}

fn latent_grid(size: u32, stride: i64) -> Result<usize, EncodeError> {
    let pixels = i64::from(size);
    if pixels > 0 && pixels % stride == 0 {
        return Ok((pixels / stride) as usize);
    }
    let suggestion = ((pixels + stride / 2) / stride).max(1) * stride;
    Err(EncodeError::ImageSize { size, stride, suggestion })
}

fn refuse_other_dataset(store: &Store, plan: &Plan, overwrite: bool) -> Result<(), EncodeError> {
    match Manifest::read(store) {
        _ if overwrite => Ok(()),
        Ok(manifest) if manifest.encode_id == plan.encode_id => Ok(()),
        Ok(_) => Err(EncodeError::OtherDataset { url: store.url().to_owned() }),
        Err(DataError::NoDataset { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// "64MiB", "1.5GB", "1000000".
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        other => return Err(format!("unknown unit {other:?}; use KB, MB, GB, KiB, MiB or GiB")),
    };
    match digits.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number * factor < 1e12 => Ok((number * factor) as u64),
        _ => Err("not a size like 64MiB".to_owned()),
    }
}

fn parse_batch(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(batch) if (1..=65_536).contains(&batch) => Ok(batch),
        _ => Err("not a number from 1 to 65536".to_owned()),
    }
}
