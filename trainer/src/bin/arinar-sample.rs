//! `arinar-sample`: pictures and a labelled grid from a run's EMA weights.

use std::collections::BTreeSet;
use std::process::ExitCode;

use arinar_checkpoint::{LoadedRun, load_ema};
use arinar_collective::device::DeviceChoice;
use arinar_collective::machine::allocator;
use arinar_data::read::Dataset;
use arinar_model::schedule::GuidanceSchedule;
use arinar_model::vae::{LoadedVae, load_vae};
use arinar_model::{Arinar, Precision, SampleOptions, weights};
use arinar_protocol::exit_code;
use arinar_store::Store;
use arinar_store::object::LocalCopy;
use arinar_trainer::reporter::{write_error_line, write_line};
use arinar_trainer::sample::{Progress, Row, choose, draw, png, to_pictures};
use arinar_trainer::{Stop, config::TrainConfig, shutdown};
use clap::{Parser, ValueEnum};
use image::RgbImage;
use tch::{Device, nn};

/// Samples pictures from a training run, with the exponential moving average of its weights.
///
/// The newest whole checkpoint of the run is taken. Pictures are decoded by the VAE that lies in the run's dataset, or
/// by the one given with --vae. Writes one PNG per picture, CLASS-NAME-NUMBER.png, and grid.png with a row per class.
/// Pictures of an earlier run of this program are replaced, other files never.
///
/// The paper's best settings for ARINAR-B: guidance scale 4.5 at temperature 1.0, 3.9 at 1.1; 256 steps.
#[derive(Parser, Debug)]
#[command(version)]
struct Cli {
    /// Folder or store URL of the run (run.dir of its configuration)
    #[arg(long)]
    run: String,
    /// Folder or store URL for the pictures
    #[arg(long, default_value = "samples")]
    out: String,
    /// Classes by number or name, comma-separated [default: nine spread over all classes]
    #[arg(long, value_delimiter = ',')]
    classes: Vec<String>,
    /// Pictures of each class
    #[arg(long, default_value_t = 8)]
    per_class: usize,
    /// Classifier-free guidance; 1 is none
    #[arg(long, default_value_t = 4.5)]
    guidance_scale: f64,
    /// How the guidance grows while tokens appear
    #[arg(long, value_enum, default_value_t = Guidance::Linear)]
    guidance_schedule: Guidance,
    /// Above 1 sharpens (the standard deviations are divided by it), below 1 varies more
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Steps of the outer model; never more than the picture has tokens
    #[arg(long, default_value_t = 64)]
    steps: i64,
    /// Same seed, same pictures
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Pictures sampled at once
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// VAE weights, safetensors or the official kl16.ckpt [default: those in the run's dataset]
    #[arg(long)]
    vae: Option<String>,
    /// Number format of the matrix products; bf16 is much faster where the processor has it [default: the run's own
    /// precision, but fp32 on a processor without bf16]
    #[arg(long, value_enum)]
    precision: Option<Format>,
    /// auto: the first GPU where there is one; cpu; cuda
    #[arg(long, default_value_t, value_name = "DEVICE")]
    device: DeviceChoice,
    /// CPU threads [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

/// Name of the picture with a row per class.
const GRID: &str = "grid.png";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Guidance {
    Linear,
    Constant,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Fp32,
    Bf16,
}

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to do if even this cannot be written.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit_code::CONFIGURATION } else { exit_code::DONE });
        }
    };
    match run(&cli) {
        Ok(()) => ExitCode::from(exit_code::DONE),
        Err(stop) => shutdown::report("arinar-sample", 0, &stop),
    }
}

fn run(cli: &Cli) -> Result<(), Stop> {
    if let Some(threads) = cli.threads {
        tch::set_num_threads(threads.into());
    }
    let run: LoadedRun<TrainConfig> = load_ema(&cli.run)?;
    for warning in &run.warnings {
        write_error_line(&format!("arinar-sample: warning: {warning}"));
    }
    let names = class_names(&run);
    let labels = choose(&cli.classes, &names).map_err(Stop::configuration)?;
    let options = cli.sample_options(&run);
    cli.check(&options, &labels, &run)?;
    let device = cli.device.device(0).map_err(Stop::configuration)?;
    let vae = cli.find_vae(&run, device)?;
    let out = Store::open(&cli.out).map_err(Stop::configuration)?;
    check_out(&out, &labels, &names, cli.per_class)?;
    let precision = cli.precision(&run, device);
    if !precision.is_native(device) {
        let name = precision.name();
        write_error_line(&format!(
            "arinar-sample: warning: this processor has no instructions for {name}: --precision fp32 is faster on it"
        ));
    }
    let model = frozen_model(&run, precision, device)?;
    let (count, precision) = (cli.per_class * labels.len(), precision.name());
    write_line(&format!(
        "{}: EMA weights of step {}, {count} pictures of {} classes, {precision}",
        cli.run,
        run.step,
        labels.len()
    ));
    let every_label: Vec<i64> = labels.iter().flat_map(|&label| vec![label; cli.per_class]).collect();
    let pictures = sample(cli.batch, &options, &model, &vae, &every_label)?;
    let grid = write(&out, &names, &labels, &pictures)?;
    write_line(&format!("grid: {grid}"));
    Ok(())
}

/// Names of the classes; their numbers where the dataset had no names.
fn class_names(run: &LoadedRun<TrainConfig>) -> Vec<String> {
    let known = &run.dataset.class_names;
    (0..run.config.model.classes as usize)
        .map(|label| known.get(label).cloned().unwrap_or_else(|| format!("class {label}")))
        .collect()
}

/// The model with a run's EMA weights, for forward passes alone.
fn frozen_model(run: &LoadedRun<TrainConfig>, precision: Precision, device: Device) -> Result<Arinar, Stop> {
    let mut store = nn::VarStore::new(Device::Cpu);
    let mut arinar = Arinar::new(&store.root(), &run.config.model);
    for (name, variable) in weights::named(&store) {
        let Some(trained) = run.tensors.get(&name).filter(|trained| trained.size() == variable.size()) else {
            return Err(Stop::failure(format!("the checkpoint of step {} lacks {name} in its shape", run.step)));
        };
        tch::no_grad(|| variable.shallow_clone().f_copy_(trained)).map_err(Stop::failure)?;
    }
    store.freeze();
    store.set_device(device);
    arinar.set_precision(precision);
    // Hundreds of steps multiply by the same weights: they are cast once.
    arinar.freeze();
    Ok(arinar)
}

/// Samples all labels in batches, decodes them, and shows how far it is.
fn sample(
    batch: usize,
    options: &SampleOptions,
    model: &Arinar,
    vae: &LoadedVae,
    labels: &[i64],
) -> Result<Vec<RgbImage>, Stop> {
    let progress = Progress::start(labels.len().div_ceil(batch) as u64 * options.steps as u64);
    let mut pictures = Vec::with_capacity(labels.len());
    for (index, labels) in labels.chunks(batch).enumerate() {
        let options = SampleOptions { seed: options.seed.wrapping_add(index as u64), ..options.clone() };
        let decoded = tch::no_grad(|| {
            let latents = model.sample(labels, &options, &mut |_, _| progress.step());
            vae.vae.decode(&(latents / vae.scale)).to_device(Device::Cpu)
        });
        pictures.extend(to_pictures(&decoded).map_err(Stop::failure)?);
    }
    progress.finish();
    Ok(pictures)
}

/// Makes sure that the pictures can be written, before they are sampled: the place can be read, and what they replace
/// there was written by this program.
fn check_out(out: &Store, labels: &[i64], names: &[String], per_class: usize) -> Result<(), Stop> {
    /// More than enough to tell who wrote a picture.
    const START: u64 = 4096;
    let mut wanted = BTreeSet::from([GRID.to_owned()]);
    for &label in labels {
        wanted.extend((0..per_class).map(|number| picture_name(label, &names[label as usize], number)));
    }
    for object in out.list("").map_err(Stop::failure)? {
        if !wanted.contains(&object.name) {
            continue;
        }
        let start = out.get_range(&object.name, 0, object.bytes.min(START)).map_err(Stop::failure)?;
        if !png::is_ours(&start) {
            return Err(Stop::configuration(format!(
                "{} exists and was not written by this program; move it away or choose another --out",
                out.url_of(&object.name)
            )));
        }
    }
    Ok(())
}

/// Name of a picture's file.
fn picture_name(label: i64, class: &str, number: usize) -> String {
    format!("{label:04}-{}-{number:03}.png", file_name(class))
}

/// Writes every picture and the grid; returns the grid's URL.
fn write(out: &Store, names: &[String], labels: &[i64], pictures: &[RgbImage]) -> Result<String, Stop> {
    let per_class = pictures.len() / labels.len();
    let mut rows = Vec::with_capacity(labels.len());
    for (&label, pictures) in labels.iter().zip(pictures.chunks(per_class)) {
        let name = &names[label as usize];
        for (number, picture) in pictures.iter().enumerate() {
            save(picture, out, &picture_name(label, name, number))?;
        }
        rows.push(Row { label: name.clone(), pictures: pictures.to_vec() });
    }
    save(&draw(&rows), out, GRID)?;
    Ok(out.url_of(GRID))
}

fn save(picture: &RgbImage, out: &Store, name: &str) -> Result<(), Stop> {
    let bytes = png::encode(picture);
    let bytes = bytes.map_err(|error| Stop::failure(format!("cannot write {}: {error}", out.url_of(name))))?;
    out.put(name, bytes).map_err(Stop::failure)
}

/// A class name as part of a file name.
fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

impl Cli {
    fn sample_options(&self, run: &LoadedRun<TrainConfig>) -> SampleOptions {
        SampleOptions {
            steps: self.steps.min(run.config.model.sequence_length()),
            guidance_scale: self.guidance_scale,
            guidance_schedule: match self.guidance_schedule {
                Guidance::Linear => GuidanceSchedule::Linear,
                Guidance::Constant => GuidanceSchedule::Constant,
            },
            temperature: self.temperature,
            seed: self.seed,
        }
    }

    fn precision(&self, run: &LoadedRun<TrainConfig>, device: Device) -> Precision {
        match self.precision {
            Some(Format::Fp32) => Precision::Fp32,
            Some(Format::Bf16) => Precision::Bf16,
            None if run.config.precision.is_native(device) => run.config.precision,
            None => Precision::Fp32,
        }
    }

    fn check(&self, options: &SampleOptions, labels: &[i64], run: &LoadedRun<TrainConfig>) -> Result<(), Stop> {
        if self.per_class == 0 || self.batch == 0 {
            return Err(Stop::configuration("--per-class and --batch must be at least 1".to_owned()));
        }
        if self.guidance_scale < 1.0 {
            let scale = self.guidance_scale;
            return Err(Stop::configuration(format!("--guidance-scale {scale} is below 1, which is no guidance")));
        }
        options.validate(labels, &run.config.model).map_err(Stop::configuration)
    }

    /// The VAE given, else the one kept with the run's dataset.
    fn find_vae(&self, run: &LoadedRun<TrainConfig>, device: Device) -> Result<LoadedVae, Stop> {
        let vae = match &self.vae {
            Some(url) => given_vae(url, device)?,
            None => vae_of_dataset(&run.config.data.url, device)?,
        };
        let (stride, channels) = (vae.config.stride(), vae.config.embed_dim);
        let wanted = &run.config.model.vae;
        if stride == wanted.stride && channels == wanted.channels {
            return Ok(vae);
        }
        Err(Stop::configuration(format!(
            "the VAE has stride {stride} and {channels} channels, the run's model wants {} and {}; give the right one \
             with --vae",
            wanted.stride, wanted.channels
        )))
    }
}

fn given_vae(url: &str, device: Device) -> Result<LoadedVae, Stop> {
    let copy = LocalCopy::fetch(url).map_err(Stop::configuration)?;
    let told = |error: &dyn std::fmt::Display| match copy {
        LocalCopy::InPlace(_) => Stop::configuration(error.to_string()),
        LocalCopy::Fetched(_) => Stop::configuration(format!("{url}, fetched: {error}")),
    };
    load_vae(copy.path(), device).map_err(|error| told(&error))
}

fn vae_of_dataset(url: &str, device: Device) -> Result<LoadedVae, Stop> {
    let wanted = |error: &dyn std::fmt::Display| Stop::configuration(format!("{error}; or give the VAE with --vae"));
    let dataset = Dataset::open(url).map_err(|error| wanted(&error))?;
    dataset.vae(device).map_err(|error| wanted(&error))
}
