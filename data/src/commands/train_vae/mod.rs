//! `arinar-data train-vae`: a small KL autoencoder for pictures that are not ImageNet.
//!
//! Same architecture as the tokenizer of the paper with fewer channels and levels. The loss is
//! L1 + L2 of the reconstruction plus a weighted KL divergence; there is no adversarial or perceptual
//! part, since their networks would have to be downloaded.

mod augment;
mod pictures;
mod quality;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use arinar_model::vae::{AutoencoderKl, VaeConfig, save_vae};
use arinar_model::weights;
use clap::Args;
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, nn};

use crate::commands::encode::EncodeError;
use augment::augment;
use pictures::Pictures;
use quality::Quality;

/// Metadata key of the command that trained a VAE; files without it are not this command's to replace.
const TRAINED_BY: &str = "trained_by";

/// Options of `arinar-data train-vae`.
#[derive(Args, Debug)]
pub struct TrainVaeArgs {
    /// Folders (CLASS/NAME) or .tar files of pictures
    #[arg(long, required = true, num_args = 1..)]
    images: Vec<PathBuf>,
    /// Where the weights go (one safetensors file); also written at every report, so a killed run leaves
    /// usable weights. Replaces a file that this command has written before, and no other
    #[arg(long)]
    out: PathBuf,
    /// Side of the square pictures; larger ones are cropped as ADM does
    #[arg(long, default_value_t = 32)]
    image_size: u32,
    /// Channels of the finest level, a multiple of 32
    #[arg(long, default_value_t = 32)]
    channels: i64,
    /// Channel multiplier of each level; every level but the last halves the picture
    #[arg(long, value_delimiter = ',', default_value = "1,1,3,4")]
    multipliers: Vec<i64>,
    /// Residual blocks per level
    #[arg(long, default_value_t = 1)]
    residual_blocks: i64,
    /// Channels of the latent, which are the features of a token
    #[arg(long, default_value_t = 16)]
    latent_channels: i64,
    /// Weight updates
    #[arg(long, default_value_t = 8000)]
    steps: u64,
    /// Pictures per update
    #[arg(long, default_value_t = 32)]
    batch: i64,
    /// Peak learning rate; it rises over the first 2% of the steps and falls to 0 along a cosine
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    /// Weight of the KL divergence, in nats per latent element
    #[arg(long, default_value_t = 3e-3)]
    kl_weight: f64,
    /// Pictures held out of training to measure the reconstruction on
    #[arg(long, default_value_t = 128)]
    held_out: usize,
    /// Steps between two reports
    #[arg(long, default_value_t = 500)]
    report_every: u64,
    /// Seed of initialisation, split, augmentation and noise
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// CPU threads (default: all cores)
    #[arg(long)]
    threads: Option<i32>,
}

/// Trains, reporting the reconstruction of held-out pictures, and writes the weights.
pub fn run(args: &TrainVaeArgs) -> Result<()> {
    let config = args.vae_config()?;
    args.check_out()?;
    if let Some(threads) = args.threads {
        tch::set_num_threads(threads);
    }
    tch::manual_seed(args.seed as i64);
    let pictures = Pictures::read(&args.images, args.image_size, args.held_out, args.seed)?;
    let mut store = nn::VarStore::new(Device::Cpu);
    let vae = AutoencoderKl::new(&store.root(), &config);
    let mut optimizer = nn::AdamW { beta2: 0.99, wd: 1e-4, ..Default::default() }.build(&store, args.learning_rate)?;
    println!(
        "training a {:.1}M-parameter VAE: {} pictures, {} held out, {} steps of {}",
        store.trainable_variables().iter().map(|v| v.numel()).sum::<usize>() as f64 / 1e6,
        pictures.training.size()[0],
        pictures.held_out.size()[0],
        args.steps,
        args.batch,
    );
    let started = Instant::now();
    for step in 0..args.steps {
        optimizer.set_lr(args.learning_rate_at(step));
        let loss = loss(&vae, &augment(&pictures.draw(args.batch)), args.kl_weight);
        optimizer.backward_step(&loss);
        let done = step + 1;
        if done % args.report_every == 0 || done == args.steps {
            let loss = loss.double_value(&[]);
            ensure!(loss.is_finite(), "the loss became {loss} at step {done}; try a smaller --learning-rate");
            report(args, &store, &vae, &config, &pictures, done, loss, started)?;
        }
    }
    store.freeze();
    println!("weights: {}", args.out.display());
    Ok(())
}

/// L1 + L2 + weighted KL, a scalar; `images` [B, 3, H, W] in [-1, 1].
fn loss(vae: &AutoencoderKl, images: &Tensor, kl_weight: f64) -> Tensor {
    let moments = vae.encode(images);
    let latents = moments.sample(&moments.mean.randn_like());
    let error = vae.decode(&latents) - images;
    error.abs().mean(Kind::Float) + error.square().mean(Kind::Float) + moments.kl().mean(Kind::Float) * kl_weight
}

#[allow(clippy::too_many_arguments)] // one call site: a report is about everything at hand
fn report(
    args: &TrainVaeArgs,
    store: &nn::VarStore,
    vae: &AutoencoderKl,
    config: &VaeConfig,
    pictures: &Pictures,
    done: u64,
    loss: f64,
    started: Instant,
) -> Result<()> {
    let quality = Quality::measure(vae, &pictures.held_out);
    let scale = 1.0 / quality::latent_std(vae, &pictures.training);
    let facts = [
        ("held_out_psnr_db", format!("{:.2}", quality.mean_psnr)),
        ("image_size", args.image_size.to_string()),
        (TRAINED_BY, args.command_line()),
        ("step", done.to_string()),
    ];
    save_vae(&args.out, store, config, scale, &facts).with_context(|| format!("saving {}", args.out.display()))?;
    let elapsed = started.elapsed();
    let remaining = elapsed.mul_f64((args.steps - done) as f64 / done as f64);
    println!(
        "step {done}/{}  loss {loss:.4}  held-out PSNR {:.2} dB (of the mean error {:.2} dB)  KL {:.2} nats/element  \
         scale {scale:.4}  {:.0} pictures/s  ETA {}",
        args.steps,
        quality.mean_psnr,
        quality.psnr_of_mean_error,
        quality.kl,
        done as f64 * args.batch as f64 / elapsed.as_secs_f64(),
        minutes(remaining),
    );
    Ok(())
}

fn minutes(duration: Duration) -> String {
    format!("{}:{:02}", duration.as_secs() / 60, duration.as_secs() % 60)
}

impl TrainVaeArgs {
    fn vae_config(&self) -> Result<VaeConfig> {
        let config = VaeConfig {
            ch: self.channels,
            ch_mult: self.multipliers.clone(),
            num_res_blocks: self.residual_blocks,
            embed_dim: self.latent_channels,
        };
        config.validate().map_err(anyhow::Error::msg)?;
        ensure!(
            self.batch > 0 && self.steps > 0 && self.report_every > 0,
            "--batch, --steps and --report-every must be at least 1"
        );
        ensure!(
            i64::from(self.image_size) % config.stride() == 0,
            "--image-size {} is not a multiple of the stride {} that {} multipliers give",
            self.image_size,
            config.stride(),
            self.multipliers.len()
        );
        Ok(config)
    }

    /// Makes sure that `--out` can be written before anything is trained.
    fn check_out(&self) -> Result<()> {
        let shown = self.out.display();
        let file = match std::fs::read(&self.out) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            file => file.with_context(|| format!("--out {shown}"))?,
        };
        let ours = weights::metadata(&self.out, &file).is_ok_and(|facts| facts.contains_key(TRAINED_BY));
        if ours {
            return Ok(());
        }
        Err(EncodeError::ForeignFile { url: shown.to_string(), what: "a VAE" }.into())
    }

    fn learning_rate_at(&self, step: u64) -> f64 {
        let progress = step as f64 / self.steps as f64;
        let warmup = (progress / 0.02).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.learning_rate * warmup * cosine
    }

    /// The options that decide the weights, so that a file says how it was made.
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
