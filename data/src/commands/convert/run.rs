//! The run of `arinar-data convert`.

use arinar_model::vae::{KL16_SCALE, LoadedVae, VaeConfig, load_vae, vae_safetensors};
use tch::Device;

use super::args::ConvertArgs;
use super::error::ConvertError;
use super::npz::{NpzError, read_moments, shape};
use crate::commands::dataset_writer::encoder::RecordEncoder;
use crate::commands::dataset_writer::error::EncodeError;
use crate::commands::dataset_writer::job::Job;
use crate::commands::dataset_writer::open_shard::OpenShard;
use crate::commands::dataset_writer::picture_list::{PictureList, report_notes};
use crate::commands::dataset_writer::settings::DatasetSettings;
use crate::commands::dataset_writer::write::write_dataset;
use crate::format::facts::VaeFacts;
use crate::format::hash::xxh3;
use crate::reporter::Reporter;
use crate::sources::{FileKind, InputFiles};
use arinar_collective::WorkGroup;

/// Converts cached latents to a dataset. Returns a summary on rank 0, and an empty string on the other ranks.
///
/// # Errors
/// If any rank fails, every rank returns an error. The error of rank 0 describes all failures; that of the other ranks,
/// [`EncodeError::Ranks`], has an empty message.
pub fn run(args: &ConvertArgs, ranks: &WorkGroup, reporter: &Reporter) -> Result<String, EncodeError> {
    write_dataset(prepare(args, ranks, reporter), ranks, reporter)
}

fn prepare<'a>(
    args: &'a ConvertArgs,
    ranks: &WorkGroup,
    reporter: &Reporter,
) -> Result<Job<Converter<'a>>, EncodeError> {
    let files = InputFiles::open(&args.from, FileKind::CACHED_LATENTS)?;
    report_notes(&files, ranks, reporter);
    let vae = args.vae.as_ref().map(|path| load_vae(path, Device::Cpu)).transpose()?;
    let facts = vae.as_ref().map_or_else(official_vae, VaeFacts::of);
    let shape = shape_of(&files, &facts, vae.as_ref())?;
    let settings = DatasetSettings {
        kind: Some("converted from .npz"),
        image_size: u32::try_from(shape[1] * facts.stride as usize).unwrap_or(u32::MAX),
        vae: facts,
        seed: args.seed,
        shard_bytes: args.shard_bytes,
        skip_bad: args.skip_bad,
        overwrite: args.overwrite,
        no_lease: args.no_lease,
    };
    Job::new(Converter { args, files, shape }, settings, shape, &args.out)
}

/// Returns the facts about the KL-16 of the official code, whose weights are not known here.
fn official_vae() -> VaeFacts {
    let config = VaeConfig::kl16();
    let (channels, stride) = (config.embed_dim, config.stride());
    VaeFacts { config, xxh3_128: String::new(), scale: KL16_SCALE, channels, stride }
}

/// Returns the shape of the first readable file. All other files must have the same shape.
fn shape_of(files: &InputFiles, facts: &VaeFacts, vae: Option<&LoadedVae>) -> Result<[usize; 3], EncodeError> {
    let mut first_error = None;
    for index in 0..files.len() {
        let name = || files.name(index).into_owned();
        match files.read(index).map_err(NpzError::from).and_then(|file| shape(&file)) {
            Ok(shape) if shape[0] as i64 == 2 * facts.channels && shape[1] == shape[2] => return Ok(shape),
            Ok(shape) => {
                let vae = if vae.is_some() { "the VAE given" } else { "the official KL-16" }.to_owned();
                return Err(ConvertError::Vae { name: name(), shape, vae, channels: facts.channels }.into());
            }
            Err(reason) => first_error = first_error.or_else(|| Some((name(), reason))),
        }
    }
    let (name, reason) = first_error.unwrap_or_else(|| (String::new(), NpzError::Zip("there are none".to_owned())));
    Err(ConvertError::NoneGood { count: files.len(), name, reason }.into())
}

/// Converts .npz files to records.
struct Converter<'a> {
    args: &'a ConvertArgs,
    files: InputFiles,
    /// Shape of the moments: [2C, H, W].
    shape: [usize; 3],
}

impl RecordEncoder for Converter<'_> {
    fn pictures(&self) -> &dyn PictureList {
        &self.files
    }

    fn tokenizer(&self) -> Result<Option<Vec<u8>>, EncodeError> {
        Ok(self.args.vae.as_ref().map(|path| vae_safetensors(path)).transpose()?)
    }

    fn content_hash(&self, picture: u32) -> Result<u128, String> {
        self.files.read(picture as usize).map(|file| xxh3(&file)).map_err(|error| error.to_string())
    }

    fn check(&self, picture: u32) -> Result<(), String> {
        self.read(picture).map(|_| ()).map_err(|error| error.to_string())
    }

    fn fill(
        &self,
        pictures: &[u32],
        shard: &mut OpenShard<'_>,
        on_progress: &mut dyn FnMut(u64),
    ) -> Result<(), EncodeError> {
        for &index in pictures {
            match self.read(index) {
                Ok((content, [original, mirrored])) => shard.push(index, content, &original, &mirrored),
                Err(reason) => shard.skip(index, reason.to_string()),
            }
            on_progress(1);
        }
        Ok(())
    }
}

impl Converter<'_> {
    /// Returns the XXH3-128 of a file and its two views.
    fn read(&self, index: u32) -> Result<(u128, [Vec<u8>; 2]), NpzError> {
        let file = self.files.read(index as usize)?;
        Ok((xxh3(&file), read_moments(&file, self.shape)?))
    }
}
