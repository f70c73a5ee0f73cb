//! Options of `arinar-data encode`.

use std::path::PathBuf;

use arinar_collective::device::DeviceChoice;
use clap::Args;

use crate::byte_size::parse_bytes;

/// Options of `arinar-data encode`.
#[derive(Args, Clone, Debug)]
pub struct EncodeArgs {
    /// Read pictures from these folders (CLASS/NAME), .tar files or WebDataset shards
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub images: Vec<PathBuf>,
    /// Load the weights of the VAE from this file: safetensors, or the official kl16.ckpt
    #[arg(long, value_name = "FILE")]
    pub vae: PathBuf,
    /// Write the dataset to this folder or file://, s3://, gs:// or az:// URL
    #[arg(long, value_name = "URL")]
    pub out: String,
    /// Scale and crop pictures to squares with this side, as ADM does
    #[arg(long, default_value_t = 256, value_name = "PIXELS")]
    pub image_size: u32,
    /// Limit the size of a shard
    #[arg(long, default_value = "64MiB", value_parser = parse_bytes, value_name = "BYTES")]
    pub shard_bytes: u64,
    /// Encode this number of pictures at a time
    #[arg(long, default_value_t = 32, value_parser = parse_batch, value_name = "N")]
    pub batch: usize,
    /// Seed the permutation that distributes the pictures over the shards
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Skip pictures that cannot be decoded instead of failing at the end
    #[arg(long)]
    pub skip_bad: bool,
    /// Replace another dataset at --out
    #[arg(long)]
    pub overwrite: bool,
    /// Write without the lease that keeps a second writer out, to a store or file system that cannot provide one
    #[arg(long)]
    pub no_lease: bool,
    /// Run the VAE on this device: cuda, cpu, or auto for one GPU per rank where available
    #[arg(long, default_value_t, value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// Use this number of CPU threads per rank [default: the machine's cores divided by its ranks]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

fn parse_batch(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(batch) if (1..=65_536).contains(&batch) => Ok(batch),
        _ => Err("not a number from 1 to 65536".to_owned()),
    }
}
