//! `arinar-data train-vae`: trains a small KL autoencoder for pictures other than ImageNet.
//!
//! The architecture is that of the paper's tokenizer with fewer channels and levels. The loss is L1 + L2 of the
//! reconstruction plus a weighted KL divergence. There is no adversarial or perceptual loss, because their networks
//! would have to be downloaded.

mod augment;
mod error;
mod pictures;
mod quality;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arinar_model::vae::{AutoencoderKl, VaeConfig, save_vae};
use arinar_model::weights;
use arinar_store::local_folder::check_writable;
use clap::Args;
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, nn};

use crate::reporter::Reporter;
use augment::augment;
pub use error::TrainVaeError;
use pictures::PictureSplit;
use quality::Quality;

/// Metadata key of the command that trained a VAE. Only files with this key are replaced.
const TRAINED_BY: &str = "trained_by";
/// Maximum side of a picture in pixels.
const MAX_IMAGE_SIZE: u32 = 4096;

/// Options of `arinar-data train-vae`.
#[derive(Args, Debug)]
pub struct TrainVaeArgs {
    /// Train on pictures from these folders (CLASS/NAME) or .tar files
    #[arg(long, required = true, num_args = 1..)]
    pub images: Vec<PathBuf>,
    /// Write the weights to this safetensors file at every report, replacing only a file that this command wrote
    #[arg(long)]
    pub out: PathBuf,
    /// Scale and crop pictures to squares with this side, as ADM does
    #[arg(long, default_value_t = 32)]
    image_size: u32,
    /// Use this number of channels at the finest level, a multiple of 32
    #[arg(long, default_value_t = 32)]
    channels: i64,
    /// Multiply the channels of each level by these factors; every level but the last halves the picture
    #[arg(long, value_delimiter = ',', default_value = "1,1,3,4")]
    multipliers: Vec<i64>,
    /// Use this number of residual blocks per level
    #[arg(long, default_value_t = 1)]
    residual_blocks: i64,
    /// Use this number of latent channels, which are the features of a token
    #[arg(long, default_value_t = 16)]
    latent_channels: i64,
    /// Train for this number of steps
    #[arg(long, default_value_t = 8000)]
    steps: u64,
    /// Train on this number of pictures per step
    #[arg(long, default_value_t = 32)]
    batch: i64,
    /// Set the peak learning rate, reached after a warm-up of 2% of the steps and followed by a cosine decay to 0
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    /// Weight the KL divergence, in nats per latent element, by this factor
    #[arg(long, default_value_t = 3e-3)]
    kl_weight: f64,
    /// Hold out this number of pictures to measure the reconstruction
    #[arg(long, default_value_t = 128)]
    held_out: usize,
    /// Report after this number of steps
    #[arg(long, default_value_t = 500)]
    report_every: u64,
    /// Seed the initialisation, the split, the augmentation and the noise
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Use this number of CPU threads [default: all cores]
    #[arg(long)]
    threads: Option<i32>,
}

/// Trains a VAE, reports its reconstruction of held-out pictures, and writes its weights.
///
/// # Errors
/// Returns an error if an option is invalid, if the pictures cannot be read, if the loss is not finite, or if the
/// weights cannot be written.
pub fn run(args: &TrainVaeArgs, reporter: &Reporter) -> Result<(), TrainVaeError> {
    let config = args.vae_config()?;
    args.check_out()?;
    if let Some(threads) = args.threads {
        tch::set_num_threads(threads);
    }
    tch::manual_seed(args.seed as i64);
    let pictures = PictureSplit::read(&args.images, args.image_size, args.held_out, args.seed, reporter)?;
    let mut store = nn::VarStore::new(Device::Cpu);
    let vae = AutoencoderKl::new(&store.root(), &config);
    let mut optimizer = nn::AdamW { beta2: 0.99, wd: 1e-4, ..Default::default() }.build(&store, args.learning_rate)?;
    reporter.print(&format!(
        "training a {:.1}M-parameter VAE: {} pictures, {} held out, {} steps of {}",
        store.trainable_variables().iter().map(|v| v.numel()).sum::<usize>() as f64 / 1e6,
        pictures.training.size()[0],
        pictures.held_out.size()[0],
        args.steps,
        args.batch,
    ));
    let started = Instant::now();
    for step in 0..args.steps {
        optimizer.set_lr(args.learning_rate_at(step));
        let loss = loss(&vae, &augment(&pictures.draw(args.batch)), args.kl_weight);
        optimizer.backward_step(&loss);
        let done = step + 1;
        if done % args.report_every == 0 || done == args.steps {
            let loss = loss.double_value(&[]);
            if !loss.is_finite() {
                return Err(TrainVaeError::NotFinite { loss, step: done });
            }
            let training = Training { args, store: &store, vae: &vae, config: &config, pictures: &pictures, started };
            reporter.print(&training.save(done, loss)?);
        }
    }
    store.freeze();
    reporter.print(&format!("weights: {}", args.out.display()));
    Ok(())
}

/// Returns L1 + L2 + weighted KL divergence as a scalar, for `images` [B, 3, H, W] in [-1, 1].
fn loss(vae: &AutoencoderKl, images: &Tensor, kl_weight: f64) -> Tensor {
    let moments = vae.encode(images);
    let latents = moments.sample(&moments.mean.randn_like());
    let error = vae.decode(&latents) - images;
    error.abs().mean(Kind::Float) + error.square().mean(Kind::Float) + moments.kl().mean(Kind::Float) * kl_weight
}

/// A training in progress.
struct Training<'a> {
    args: &'a TrainVaeArgs,
    store: &'a nn::VarStore,
    vae: &'a AutoencoderKl,
    config: &'a VaeConfig,
    pictures: &'a PictureSplit,
    started: Instant,
}

impl Training<'_> {
    /// Saves the weights after `done` steps and returns a line about the training so far.
    fn save(&self, done: u64, loss: f64) -> Result<String, TrainVaeError> {
        let Self { args, store, vae, config, pictures, started } = *self;
        let quality = Quality::measure(vae, &pictures.held_out);
        let scale = 1.0 / quality::latent_std(vae, &pictures.training);
        let facts = [
            ("held_out_psnr_db", format!("{:.2}", quality.mean_psnr)),
            ("image_size", args.image_size.to_string()),
            (TRAINED_BY, args.command_line()),
            ("step", done.to_string()),
        ];
        save_vae(&args.out, store, config, scale, &facts)?;
        let elapsed = started.elapsed();
        let remaining = elapsed.mul_f64((args.steps - done) as f64 / done as f64);
        Ok(format!(
            "step {done}/{}  loss {loss:.4}  held-out PSNR {:.2} dB (of the mean error {:.2} dB)  KL {:.2} nats/element  \
         scale {scale:.4}  {:.0} pictures/s  ETA {}",
            args.steps,
            quality.mean_psnr,
            quality.psnr_of_mean_error,
            quality.kl,
            done as f64 * args.batch as f64 / elapsed.as_secs_f64(),
            minutes(remaining),
        ))
    }
}

fn minutes(duration: Duration) -> String {
    format!("{}:{:02}", duration.as_secs() / 60, duration.as_secs() % 60)
}

impl TrainVaeArgs {
    fn vae_config(&self) -> Result<VaeConfig, TrainVaeError> {
        let config = VaeConfig {
            ch: self.channels,
            ch_mult: self.multipliers.clone(),
            num_res_blocks: self.residual_blocks,
            embed_dim: self.latent_channels,
        };
        config.validate().map_err(TrainVaeError::Option)?;
        match self.problem(&config) {
            Some(problem) => Err(TrainVaeError::Option(problem)),
            None => Ok(config),
        }
    }

    /// Returns the first option that is out of range.
    fn problem(&self, config: &VaeConfig) -> Option<String> {
        let (size, stride) = (self.image_size, config.stride());
        if !(1..=MAX_IMAGE_SIZE).contains(&size) || i64::from(size) % stride != 0 {
            return Some(format!(
                "--image-size {size} is not a multiple of the stride {stride} that {} multipliers give, up to \
                 {MAX_IMAGE_SIZE}",
                self.multipliers.len()
            ));
        }
        if self.batch < 1 || self.steps < 1 || self.report_every < 1 || self.threads.is_some_and(|threads| threads < 1)
        {
            return Some("--batch, --steps, --report-every and --threads must be at least 1".to_owned());
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return Some(format!("--learning-rate {} is not a finite number above 0", self.learning_rate));
        }
        if !(self.kl_weight >= 0.0 && self.kl_weight.is_finite()) {
            return Some(format!("--kl-weight {} is not a finite number of at least 0", self.kl_weight));
        }
        None
    }

    /// Checks before the training that `--out` can be written.
    fn check_out(&self) -> Result<(), TrainVaeError> {
        let out = || self.out.clone();
        let folder = self.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The folder is not created.
        let folder =
            folder.metadata().map_err(|source| TrainVaeError::Unreadable { out: out(), source }).map(|_| folder)?;
        check_writable(folder).map_err(|source| TrainVaeError::Folder { out: out(), source })?;
        match std::fs::read(&self.out) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(TrainVaeError::Unreadable { out: out(), source }),
            Ok(file) if weights::metadata(&self.out, &file).is_ok_and(|facts| facts.contains_key(TRAINED_BY)) => Ok(()),
            Ok(_) => Err(TrainVaeError::Foreign { out: out() }),
        }
    }

    fn learning_rate_at(&self, step: u64) -> f64 {
        let progress = step as f64 / self.steps as f64;
        let warmup = (progress / 0.02).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.learning_rate * warmup * cosine
    }

    /// Returns the command with all options that determine the weights, which is stored with them.
    fn command_line(&self) -> String {
        let multipliers: Vec<String> = self.multipliers.iter().map(i64::to_string).collect();
        format!(
            "arinar-data train-vae --image-size {} --channels {} --multipliers {} --residual-blocks {} \
             --latent-channels {} --steps {} --batch {} --learning-rate {} --kl-weight {} --held-out {} --seed {}",
            self.image_size,
            self.channels,
            multipliers.join(","),
            self.residual_blocks,
            self.latent_channels,
            self.steps,
            self.batch,
            self.learning_rate,
            self.kl_weight,
            self.held_out,
            self.seed
        )
    }
}
