//! Tensor code of ARINAR ([arXiv 2503.02883](https://arxiv.org/abs/2503.02883)), an image generator with two nested
//! autoregressive layers.
//!
//! The crate contains the KL-VAE tokenizer ([`vae`]), the outer masked transformer ([`outer`]), the inner transformer
//! ([`head`]) with its Gaussian mixtures ([`gmm`]), guidance, sampling, every schedule, and loading and saving of
//! [`weights`] under the official parameter names. It knows nothing about ranks, datasets or the environment; the only
//! files it reads and writes are weights.
//!
//! Start with [`Arinar`], the complete model, and [`ModelConfig`], its configuration. [`ModelConfig::arinar_b`] is the
//! model of the paper.
//!
//! # Examples
//!
//! Create a tiny model, save and load its weights, and sample a latent:
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use arinar_model::schedule::GuidanceSchedule;
//! use arinar_model::{Arinar, ModelConfig, SampleOptions, weights};
//! use tch::{Device, nn};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = ModelConfig::arinar_b();
//! (config.image_size, config.classes) = (64, 10);
//! (config.outer.width, config.outer.encoder_depth, config.outer.decoder_depth) = (24, 1, 1);
//! config.head.width = 16;
//! config.validate()?;
//!
//! tch::manual_seed(1);
//! let store = nn::VarStore::new(Device::Cpu);
//! let model = Arinar::new(&store.root(), &config);
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("arinar.safetensors");
//! weights::save(&path, &weights::named(&store), &BTreeMap::new())?;
//! weights::load(&path, &weights::named(&store))?;
//!
//! let labels = [3, 7];
//! let options = SampleOptions {
//!     steps: 4,
//!     guidance_scale: 3.0,
//!     guidance_schedule: GuidanceSchedule::Linear,
//!     temperature: 1.0,
//!     seed: 0,
//! };
//! options.validate(&labels, &config)?;
//! let latents = model.sample(&labels, &options, &mut |_step, _steps| {});
//! assert_eq!(latents.size(), [2, 16, 4, 4]);
//! # Ok(())
//! # }
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::print_stdout))]

pub mod arinar;
mod attention;
pub mod config;
pub mod flops;
pub mod gmm;
pub mod guidance;
pub mod head;
mod init;
mod linear;
pub mod mask;
pub mod outer;
pub mod precision;
pub mod sampling;
pub mod schedule;
pub mod text;
pub mod vae;
pub mod weights;

pub use arinar::Arinar;
pub use config::ModelConfig;
pub use precision::Precision;
pub use sampling::SampleOptions;
