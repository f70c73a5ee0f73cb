//! The run of `arinar-data encode`.

use arinar_model::vae::load_vae;
use tch::Device;

use super::args::EncodeArgs;
use super::encoder::Encoder;
use crate::commands::dataset_writer::error::EncodeError;
use crate::commands::dataset_writer::job::Job;
use crate::commands::dataset_writer::picture_list::report_notes;
use crate::commands::dataset_writer::settings::DatasetSettings;
use crate::commands::dataset_writer::write::write_dataset;
use crate::format::facts::VaeFacts;
use crate::reporter::Reporter;
use crate::sources::{FileKind, InputFiles};
use arinar_collective::WorkGroup;

/// Encodes pictures as a dataset. Returns a summary on rank 0, and an empty string on the other ranks.
///
/// # Errors
/// If any rank fails, every rank returns an error. The error of rank 0 describes all failures; that of the other ranks,
/// [`EncodeError::Ranks`], has an empty message.
pub fn run(args: &EncodeArgs, ranks: &WorkGroup, reporter: &Reporter) -> Result<String, EncodeError> {
    write_dataset(prepare(args, ranks, reporter), ranks, reporter)
}

fn prepare<'a>(args: &'a EncodeArgs, ranks: &WorkGroup, reporter: &Reporter) -> Result<Job<Encoder<'a>>, EncodeError> {
    let threads = args.threads.unwrap_or_else(|| cores().div_ceil(ranks.local_world_size())).max(1);
    tch::set_num_threads(threads as i32);
    let source = InputFiles::open(&args.images, FileKind::PICTURES)?;
    report_notes(&source, ranks, reporter);
    let device = args.device.device(ranks.local_rank())?;
    let vae = load_vae(&args.vae, device)?;
    let grid = latent_grid(args.image_size, vae.config.stride())?;
    let shape = [2 * vae.config.embed_dim as usize, grid, grid];
    let settings = DatasetSettings {
        kind: None,
        image_size: args.image_size,
        vae: VaeFacts::of(&vae),
        seed: args.seed,
        shard_bytes: args.shard_bytes,
        skip_bad: args.skip_bad,
        overwrite: args.overwrite,
        no_lease: args.no_lease,
    };
    // On a CPU the VAE is the bottleneck: a single thread decodes faster than it encodes.
    let decoders = if device == Device::Cpu { 1 } else { threads };
    Job::new(Encoder { args, source, vae, decoders }, settings, shape, &args.out)
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
