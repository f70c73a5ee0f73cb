//! Sampling from beginning to end: loads the run, samples in batches, and writes the images.

use arinar_checkpoint::{LoadedRun, load_ema};
use arinar_data::{Progress, Reporter};
use arinar_model::{Arinar, Precision, SampleOptions, vae::LoadedVae};
use image::RgbImage;
use tch::Device;

use super::{
    arguments::Arguments, classes::choose_classes, images::to_images, model::frozen_model, output::Output, vae,
};
use crate::{
    config::{TrainConfig, places::absolute},
    stop::Stop,
};

/// Samples the requested images, and writes them with a grid.
///
/// # Errors
/// Returns [`Stop::Configuration`] if the run, the VAE or an argument cannot be used, and [`Stop::Failure`] if sampling or
/// writing fails.
pub fn run(arguments: &Arguments) -> Result<(), Stop> {
    let reporter = Reporter::console();
    if let Some(threads) = arguments.threads {
        tch::set_num_threads(threads.into());
    }
    arguments.check_places()?;
    let run: LoadedRun<TrainConfig> = load_ema(&arguments.run)?;
    run.warnings.iter().for_each(|warning| warn(warning));
    let classes = choose_classes(&arguments.classes, &class_names(&run)).map_err(Stop::configuration)?;
    let labels: Vec<i64> = classes.iter().map(|class| class.label).collect();
    let options = arguments.sample_options(&run.config.model);
    arguments.check()?;
    options.validate(&labels, &run.config.model).map_err(Stop::configuration)?;
    let device = arguments.device.device(0).map_err(Stop::configuration)?;
    let vae = vae::load(arguments.vae.as_deref(), &run.config, device)?;
    let output = Output::open(&arguments.out, &classes, arguments.per_class)?;
    let precision = choose_precision(arguments.precision(), run.config.precision, device);
    let model = frozen_model(&run, precision, device)?;
    let labels: Vec<i64> = labels.iter().flat_map(|&label| vec![label; arguments.per_class]).collect();
    reporter.print(&format!(
        "{}: EMA weights of step {}, {} images of {} classes, {}; writing to {}",
        absolute(&arguments.run),
        run.step,
        labels.len(),
        classes.len(),
        precision.name(),
        output.url()
    ));
    let images = sample_in_batches(&model, &vae, &labels, arguments.batch, &options, &reporter)?;
    let grid = output.write(&images)?;
    reporter.print(&format!("grid: {grid}"));
    Ok(())
}

fn warn(message: &str) {
    Reporter::console().note(&format!("arinar-sample: warning: {message}"));
}

/// Returns the names of all classes; a number if the dataset has no name for a class.
fn class_names(run: &LoadedRun<TrainConfig>) -> Vec<String> {
    let known = &run.dataset.class_names;
    (0..run.config.model.classes as usize)
        .map(|label| known.get(label).cloned().unwrap_or_else(|| format!("class {label}")))
        .collect()
}

/// Returns the requested precision, or without one the precision of the run if the device has instructions for it.
fn choose_precision(requested: Option<Precision>, configured: Precision, device: Device) -> Precision {
    let default = if configured.is_native(device) { configured } else { Precision::Fp32 };
    let precision = requested.unwrap_or(default);
    if !precision.is_native(device) {
        let name = precision.name();
        warn(&format!("this processor has no instructions for {name}: --precision fp32 is faster on it"));
    }
    precision
}

/// Samples and decodes one image per label, `batch` at a time, and reports the progress.
fn sample_in_batches(
    model: &Arinar,
    vae: &LoadedVae,
    labels: &[i64],
    batch: usize,
    options: &SampleOptions,
    reporter: &Reporter,
) -> Result<Vec<RgbImage>, Stop> {
    let mut progress = Progress::start(reporter, "steps", labels.len().div_ceil(batch) as u64 * options.steps as u64);
    let mut images = Vec::with_capacity(labels.len());
    for (index, labels) in labels.chunks(batch).enumerate() {
        let options = SampleOptions { seed: options.seed.wrapping_add(index as u64), ..options.clone() };
        let decoded = tch::no_grad(|| {
            let latents = model.sample(labels, &options, &mut |_, _| progress.advance(1));
            vae.vae.decode(&(latents / vae.scale)).to_device(Device::Cpu)
        });
        images.extend(to_images(&decoded).map_err(Stop::failure)?);
    }
    Ok(images)
}
