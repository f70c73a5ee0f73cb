//! `arinar-data encode`: pictures to a dataset of latents.
//!
//! How ranks share the work and a killed run goes on is in `making`.

mod encoder;
mod pictures;

use std::path::PathBuf;

use arinar_model::{device::DeviceChoice, vae::load_vae};
use clap::Args;
use tch::Device;

pub use crate::commands::dataset_writer::EncodeError;
use crate::commands::dataset_writer::{Job, Recipe, make};
use crate::format::manifest::VaeFacts;
use crate::pictures::image_source::ImageSource;
use crate::ranks::Ranks;
use encoder::Encoder;

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
    /// auto: a GPU for each rank where there are any; cpu; cuda
    #[arg(long, default_value_t, value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// CPU threads of each rank (default: the cores of the machine shared among its ranks)
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// Encodes; on rank 0 the text returned says what was done, on the others it is empty.
///
/// # Errors
/// On rank 0 what went wrong on any rank; on the others [`EncodeError::Ranks`] without a message of their own.
pub fn run(args: &EncodeArgs, ranks: &Ranks) -> Result<String, EncodeError> {
    make(prepare(args, ranks), ranks)
}

fn prepare<'a>(args: &'a EncodeArgs, ranks: &Ranks) -> Result<Job<Encoder<'a>>, EncodeError> {
    let threads = args.threads.unwrap_or_else(|| cores().div_ceil(ranks.local_world())).max(1);
    tch::set_num_threads(threads as i32);
    let source = ImageSource::open(&args.images).map_err(EncodeError::Source)?;
    let device = args.device.device(ranks.local_rank())?;
    let vae = load_vae(&args.vae, device)?;
    let grid = latent_grid(args.image_size, vae.config.stride())?;
    let shape = [2 * vae.config.embed_dim as usize, grid, grid];
    let recipe = Recipe {
        kind: None,
        image_size: args.image_size,
        vae: VaeFacts::of(&vae),
        seed: args.seed,
        shard_bytes: args.shard_bytes,
        skip_bad: args.skip_bad,
        overwrite: args.overwrite,
    };
    // On the CPU the VAE is what takes time; one thread decodes faster than it encodes.
    let decoders = if device == Device::Cpu { 1 } else { threads };
    Job::new(Encoder { args, source, vae, decoders }, recipe, shape, &args.out)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

fn latent_grid(size: u32, stride: i64) -> Result<usize, EncodeError> {
    let pixels = i64::from(size);
    if pixels > 0 && pixels % stride == 0 {
        return Ok((pixels / stride) as usize);
    }
    let suggestion = ((pixels + stride / 2) / stride).max(1) * stride;
    Err(EncodeError::ImageSize { size, stride, suggestion })
}

/// "64MiB", "1.5GB", "1000000".
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
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
