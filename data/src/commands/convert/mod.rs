//! `arinar-data convert`: latents that the official code has cached, to a dataset.
//!
//! `main_cache.py` of LTH14/mar writes one .npz file per picture below class folders, with arrays `moments` and
//! `moments_flip` of [2C, H, W] float32. The pictures keep their names, so they are spread over the shards as `encode`
//! would spread the pictures themselves.

mod folder;
mod npz;

use std::path::PathBuf;

use arinar_model::vae::{KL16_SCALE, LoadedVae, VaeConfig, load_vae, vae_safetensors};
use clap::Args;
use tch::Device;
use thiserror::Error;

use crate::commands::dataset_writer::{EncodeError, Job, Maker, OpenShard, Pictures, Recipe, make};
use crate::commands::encode::parse_bytes;
use crate::format::manifest::VaeFacts;
use crate::ranks::Ranks;
use folder::NpzFolder;
pub use npz::{NpzError, read_moments};

/// Options of `arinar-data convert`.
#[derive(Args, Clone, Debug)]
pub struct ConvertArgs {
    /// Folder of cached latents: CLASS/NAME.npz with arrays moments and moments_flip
    #[arg(long, value_name = "FOLDER")]
    pub from: PathBuf,
    /// Where the dataset goes: a folder, file://, s3://, gs:// or az://
    #[arg(long, value_name = "URL")]
    pub out: String,
    /// The VAE that made the latents, kept beside them for sampling: safetensors, or the official kl16.ckpt
    #[arg(long, value_name = "FILE")]
    pub vae: Option<PathBuf>,
    /// Largest size of a shard
    #[arg(long, default_value = "64MiB", value_parser = parse_bytes, value_name = "BYTES")]
    pub shard_bytes: u64,
    /// Seed of the permutation that spreads the pictures over the shards
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Leave out files that cannot be used instead of failing at the end
    #[arg(long)]
    pub skip_bad: bool,
    /// Replace another dataset at --out
    #[arg(long)]
    pub overwrite: bool,
}

/// What is wrong with the folder as a whole.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// It cannot be listed.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No .npz file in any class folder.
    #[error("no .npz files in class folders below {}; main_cache.py of LTH14/mar writes them", path.display())]
    Empty {
        /// The folder given.
        path: PathBuf,
    },
    /// No file says what shape the latents have.
    #[error("none of the .npz files below {} can be used; the first, {name}: {reason}", path.display())]
    NoneGood {
        /// The folder given.
        path: PathBuf,
        /// The first file.
        name: String,
        /// What is wrong with it.
        reason: NpzError,
    },
    /// The latents are not those of the VAE.
    #[error(
        "{name} has moments {shape:?}, but {vae} makes [{}, n, n]; give the VAE that made them with --vae", 2 * channels
    )]
    Vae {
        /// The file looked at.
        name: String,
        /// Shape of its moments.
        shape: [usize; 3],
        /// Which VAE was assumed.
        vae: String,
        /// Latent channels of that VAE.
        channels: i64,
    },
}

/// Converts; on rank 0 the text returned says what was done, on the others it is empty.
///
/// # Errors
/// On rank 0 what went wrong on any rank; on the others [`EncodeError::Ranks`] without a message of their own.
pub fn run(args: &ConvertArgs, ranks: &Ranks) -> Result<String, EncodeError> {
    make(prepare(args), ranks)
}

fn prepare(args: &ConvertArgs) -> Result<Job<Converter<'_>>, EncodeError> {
    let folder = NpzFolder::open(&args.from)?;
    let vae = args.vae.as_ref().map(|path| load_vae(path, Device::Cpu)).transpose()?;
    let facts = vae.as_ref().map_or_else(official_vae, VaeFacts::of);
    let shape = shape_of(&folder, &facts, vae.as_ref())?;
    let recipe = Recipe {
        kind: Some("converted from .npz"),
        image_size: u32::try_from(shape[1] * facts.stride as usize).unwrap_or(u32::MAX),
        vae: facts,
        seed: args.seed,
        shard_bytes: args.shard_bytes,
        skip_bad: args.skip_bad,
        overwrite: args.overwrite,
    };
    Job::new(Converter { args, folder, shape }, recipe, shape, &args.out)
}

/// The KL-16 of the official code, whose weights nobody has shown us.
fn official_vae() -> VaeFacts {
    let config = VaeConfig::kl16();
    let (channels, stride) = (config.embed_dim, config.stride());
    VaeFacts { config, xxh3_128: String::new(), scale: KL16_SCALE, channels, stride }
}

/// Shape of the first file that can be read; all others must have it too.
fn shape_of(folder: &NpzFolder, facts: &VaeFacts, vae: Option<&LoadedVae>) -> Result<[usize; 3], EncodeError> {
    let mut first_error = None;
    for index in 0..folder.len() {
        let name = folder.name(index).to_owned();
        match npz::shape(&folder.path(index)) {
            Ok(shape) if shape[0] as i64 == 2 * facts.channels && shape[1] == shape[2] => return Ok(shape),
            Ok(shape) => {
                let vae = if vae.is_some() { "the VAE given" } else { "the official KL-16" }.to_owned();
                return Err(ConvertError::Vae { name, shape, vae, channels: facts.channels }.into());
            }
            Err(reason) => first_error = first_error.or(Some((name, reason))),
        }
    }
    let path = folder.root().to_owned();
    Err(match first_error {
        Some((name, reason)) => ConvertError::NoneGood { path, name, reason },
        None => ConvertError::Empty { path },
    }
    .into())
}

/// Turns .npz files into records.
struct Converter<'a> {
    args: &'a ConvertArgs,
    folder: NpzFolder,
    /// [2C, H, W].
    shape: [usize; 3],
}

impl Maker for Converter<'_> {
    fn pictures(&self) -> &dyn Pictures {
        &self.folder
    }

    fn tokenizer(&self) -> Result<Option<Vec<u8>>, EncodeError> {
        Ok(self.args.vae.as_ref().map(|path| vae_safetensors(path)).transpose()?)
    }

    fn fill(
        &self,
        pictures: &[u32],
        shard: &mut OpenShard<'_>,
        handled: &mut dyn FnMut(u64),
    ) -> Result<(), EncodeError> {
        for &index in pictures {
            match read_moments(&self.folder.path(index as usize), self.shape) {
                Ok([original, mirrored]) => shard.push(index, &original, &mirrored),
                Err(reason) => shard.leave_out(index, reason.to_string()),
            }
            handled(1);
        }
        Ok(())
    }
}
