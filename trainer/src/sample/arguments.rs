//! The command line of `arinar-sample`.

use arinar_collective::device::DeviceChoice;
use arinar_model::{ModelConfig, Precision, SampleOptions, schedule::GuidanceSchedule};
use arinar_place::{Place, of_option};
use clap::{Parser, ValueEnum};

use crate::stop::Stop;

/// Maximum number of images of a class, and of a batch.
const MAX_IMAGES: usize = 100_000;

/// Samples images from a training run, with the exponential moving average of its weights.
///
/// Uses the newest valid checkpoint of the run. Decodes the images with the VAE in the run's dataset, or with the one given by
/// --vae. Writes one PNG file per image, CLASS-NAME-NUMBER.png, and grid.png with one row per class. Replaces images of earlier
/// runs of this program, but no other files.
///
/// The best settings for ARINAR-B in the paper are 256 steps, and guidance scale 4.5 at temperature 1.0 or 3.9 at 1.1.
#[derive(Parser, Debug)]
#[command(name = "arinar-sample", version)]
pub struct Arguments {
    /// Sample from the run in this folder or at this store URL (run.dir of its configuration)
    #[arg(long)]
    pub(crate) run: String,
    /// Write the images to this folder or store URL
    #[arg(long, default_value = "samples")]
    pub(crate) out: String,
    /// Sample these classes, given by number or name and separated by commas [default: nine spread over all classes]
    #[arg(long, value_delimiter = ',')]
    pub(crate) classes: Vec<String>,
    /// Sample this many images of each class
    #[arg(long, default_value_t = 8)]
    pub(crate) per_class: usize,
    /// Use this scale of classifier-free guidance, where 1 means no guidance
    #[arg(long, default_value_t = 4.5)]
    pub(crate) guidance_scale: f64,
    /// Keep the guidance scale constant, or let it grow linearly from 1 while tokens are sampled
    #[arg(long, value_enum, default_value_t = Guidance::Linear)]
    guidance_schedule: Guidance,
    /// Divide the predicted standard deviations by this temperature, so that larger values give less varied images
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Run the outer layer for this many steps, but at most once per token
    #[arg(long, default_value_t = 64)]
    steps: i64,
    /// Use this seed, so that the same seed gives the same images
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Sample this many images at once
    #[arg(long, default_value_t = 32)]
    pub(crate) batch: usize,
    /// Decode with the VAE in this safetensors file or official kl16.ckpt [default: the VAE in the run's dataset]
    #[arg(long)]
    pub(crate) vae: Option<String>,
    /// Compute matrix products in this number format, of which bf16 is much faster if the processor supports it [default: the
    /// precision of the run, but fp32 on a processor without bf16]
    #[arg(long, value_enum)]
    precision: Option<Format>,
    /// Compute on this device: auto (the first GPU if there is one), cpu, or cuda
    #[arg(long, default_value_t, value_name = "DEVICE")]
    pub(crate) device: DeviceChoice,
    /// Use this many CPU threads [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
}

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

impl Arguments {
    /// Returns the options of the sampler for this model.
    pub(crate) fn sample_options(&self, model: &ModelConfig) -> SampleOptions {
        SampleOptions {
            steps: self.steps.min(model.sequence_length()),
            guidance_scale: self.guidance_scale,
            guidance_schedule: match self.guidance_schedule {
                Guidance::Linear => GuidanceSchedule::Linear,
                Guidance::Constant => GuidanceSchedule::Constant,
            },
            temperature: self.temperature,
            seed: self.seed,
        }
    }

    /// Returns the precision, if it is given.
    pub(crate) fn precision(&self) -> Option<Precision> {
        self.precision.map(|format| match format {
            Format::Fp32 => Precision::Fp32,
            Format::Bf16 => Precision::Bf16,
        })
    }

    /// Checks the places before anything is read.
    ///
    /// # Errors
    /// Returns [`Stop::Configuration`] with the name of the option.
    pub(crate) fn check_places(&self) -> Result<(), Stop> {
        let places = [("--run", Some(&self.run)), ("--out", Some(&self.out)), ("--vae", self.vae.as_ref())];
        for (option, place) in places {
            if let Some(place) = place {
                of_option(option, Place::parse(place)).map_err(Stop::configuration)?;
            }
        }
        Ok(())
    }

    /// Checks the values that do not depend on the run.
    ///
    /// # Errors
    /// Returns [`Stop::Configuration`] if a value is out of range.
    pub(crate) fn check(&self) -> Result<(), Stop> {
        for (option, value) in [("--per-class", self.per_class), ("--batch", self.batch)] {
            if !(1..=MAX_IMAGES).contains(&value) {
                let problem = format!("{option} {value} is not a whole number from 1 to {MAX_IMAGES}");
                return Err(Stop::configuration(problem));
            }
        }
        if self.guidance_scale < 1.0 {
            let scale = self.guidance_scale;
            return Err(Stop::configuration(format!("--guidance-scale {scale} is below 1, which means no guidance")));
        }
        Ok(())
    }
}
