//! The tokenizer: LDM's KL-regularised autoencoder (AutoencoderKL), as used by MAR and ARINAR.
//!
//! Official source: `models/vae.py` of Qinyu-Allen-Zhao/Arinar (identical in LTH14/mar). Parameter names are those of
//! the official state dict, so the official `kl16.ckpt` loads unchanged.
//!
//! Shapes in this module: B images, H x W pixels, S stride, C latent channels.

mod autoencoder;
mod blocks;
mod config;
mod decoder;
mod encoder;
mod file;
mod moments;

pub use autoencoder::AutoencoderKl;
pub use config::{KL16_SCALE, VaeConfig};
pub use file::{LoadedVae, load_vae, load_vae_bytes, save_vae, vae_safetensors};
pub use moments::Moments;
