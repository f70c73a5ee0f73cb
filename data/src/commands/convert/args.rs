//! Options of `arinar-data convert`.

use std::path::PathBuf;

use clap::Args;

use crate::byte_size::parse_bytes;

/// Options of `arinar-data convert`.
#[derive(Args, Clone, Debug)]
pub struct ConvertArgs {
    /// Read cached latents from these folders, .tar files or .h5 files: CLASS/NAME.npz with arrays moments and
    /// moments_flip
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub from: Vec<PathBuf>,
    /// Write the dataset to this folder or file://, s3://, gs:// or az:// URL
    #[arg(long, value_name = "URL")]
    pub out: String,
    /// Store this VAE, which made the latents, with the dataset for sampling: safetensors, or the official kl16.ckpt
    #[arg(long, value_name = "FILE")]
    pub vae: Option<PathBuf>,
    /// Limit the size of a shard
    #[arg(long, default_value = "64MiB", value_parser = parse_bytes, value_name = "BYTES")]
    pub shard_bytes: u64,
    /// Seed the permutation that distributes the pictures over the shards
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Skip files that cannot be used instead of failing at the end
    #[arg(long)]
    pub skip_bad: bool,
    /// Replace another dataset at --out
    #[arg(long)]
    pub overwrite: bool,
    /// Write without the lease that keeps a second writer out, to a store or file system that cannot provide one
    #[arg(long)]
    pub no_lease: bool,
}
