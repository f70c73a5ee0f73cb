//! The tokenizer: a KL-regularised autoencoder, LDM's AutoencoderKL as used by MAR and ARINAR.
//!
//! Official source: `models/vae.py` of Qinyu-Allen-Zhao/Arinar (identical in LTH14/mar). Parameter
//! names are those of the official state dict, so the official `kl16.ckpt` loads as it is.
//!
//! Shapes in this module: B pictures, H x W pixels, S the stride, C latent channels.

mod blocks;
mod decoder;
mod encoder;
mod file;

pub use file::{LoadedVae, load_vae, load_vae_bytes, save_vae, vae_safetensors};

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

use blocks::conv1x1;
use decoder::Decoder;
use encoder::Encoder;

/// Scale of the official KL-16 latents: a training latent is `(mean + std * noise) * 0.2325`.
pub const KL16_SCALE: f64 = 0.2325;

/// Sizes of an [`AutoencoderKl`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// Channels of the first level; a multiple of the 32 groups of GroupNorm.
    pub ch: i64,
    /// Channel multiplier of each level; every level but the last halves the picture.
    pub ch_mult: Vec<i64>,
    /// Residual blocks per level (the decoder has one more).
    pub num_res_blocks: i64,
    /// Latent channels.
    pub embed_dim: i64,
}

impl VaeConfig {
    /// The 66,456,019-parameter tokenizer of MAR and ARINAR: stride 16, 16 channels.
    pub fn kl16() -> Self {
        Self { ch: 128, ch_mult: vec![1, 1, 2, 2, 4], num_res_blocks: 2, embed_dim: 16 }
    }

    /// A tokenizer for 32x32 pictures: stride 8, 16 channels, so 16 tokens a picture.
    pub fn small() -> Self {
        Self { ch: 32, ch_mult: vec![1, 1, 3, 4], num_res_blocks: 1, embed_dim: 16 }
    }

    /// Pixels per latent position along one side.
    pub fn stride(&self) -> i64 {
        1 << (self.ch_mult.len().saturating_sub(1))
    }

    /// Says what is wrong with the sizes, if anything, and what would do.
    pub fn validate(&self) -> Result<(), String> {
        let levels = self.ch_mult.len();
        if self.ch < 32 || self.ch % 32 != 0 {
            return Err(format!("ch {} is not a multiple of 32 (GroupNorm has 32 groups); use 32, 64 or 128", self.ch));
        }
        if levels == 0 || levels > 8 || self.ch_mult.iter().any(|&multiplier| multiplier < 1) {
            return Err(format!("ch_mult {:?} must be 1 to 8 positive multipliers, like 1,2,2,4", self.ch_mult));
        }
        if self.num_res_blocks < 1 || self.embed_dim < 1 {
            return Err("num_res_blocks and embed_dim must be at least 1".to_owned());
        }
        Ok(())
    }

    /// Channels at `level` (0 is the finest).
    fn channels(&self, level: usize) -> i64 {
        self.ch * self.ch_mult[level]
    }
}

/// A diagonal Gaussian over latents, as the encoder gives it.
pub struct Moments {
    /// Mean, [B, C, H/S, W/S].
    pub mean: Tensor,
    /// Log-variance clamped to [-30, 20], [B, C, H/S, W/S].
    pub logvar: Tensor,
}

impl Moments {
    /// Splits the encoder's output, [B, 2C, H/S, W/S], and clamps the log-variance.
    pub fn from_concatenated(moments: &Tensor) -> Self {
        let halves = moments.chunk(2, 1);
        Self { mean: halves[0].shallow_clone(), logvar: halves[1].clamp(-30.0, 20.0) }
    }

    /// Mean and clamped log-variance in one tensor, [B, 2C, H/S, W/S]: what a shard stores.
    pub fn concatenated(&self) -> Tensor {
        Tensor::cat(&[&self.mean, &self.logvar], 1)
    }

    /// `mean + std * noise`, unscaled; `noise` is standard normal, [B, C, H/S, W/S].
    pub fn sample(&self, noise: &Tensor) -> Tensor {
        &self.mean + (&self.logvar * 0.5).exp() * noise
    }

    /// Kullback-Leibler divergence from the standard normal in nats, [B, C, H/S, W/S].
    pub fn kl(&self) -> Tensor {
        (self.mean.square() + self.logvar.exp() - 1.0 - &self.logvar) * 0.5
    }
}

/// The autoencoder: picture to [`Moments`] and latent back to picture.
#[derive(Debug)]
pub struct AutoencoderKl {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: nn::Conv2D,
    post_quant_conv: nn::Conv2D,
}

impl AutoencoderKl {
    /// Creates the parameters under their official names at `path`.
    pub fn new(path: &nn::Path, config: &VaeConfig) -> Self {
        let double = 2 * config.embed_dim;
        Self {
            encoder: Encoder::new(&(path / "encoder"), config),
            decoder: Decoder::new(&(path / "decoder"), config),
            quant_conv: conv1x1(&(path / "quant_conv"), double, double),
            post_quant_conv: conv1x1(&(path / "post_quant_conv"), config.embed_dim, config.embed_dim),
        }
    }

    /// Pictures to the Gaussian of their latents.
    ///
    /// # Shapes
    /// `images` [B, 3, H, W] in [-1, 1]; H and W multiples of the stride.
    pub fn encode(&self, images: &Tensor) -> Moments {
        Moments::from_concatenated(&self.encoder.forward(images).apply(&self.quant_conv))
    }

    /// Latents to pictures.
    ///
    /// # Shapes
    /// `latents` [B, C, h, w], unscaled (a sampled latent divided by the scale); gives [B, 3, h*S, w*S],
    /// about in [-1, 1] but not clamped.
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        self.decoder.forward(&latents.apply(&self.post_quant_conv))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_a_gaussian_whose_log_variance_is_clamped() {
        let encoded = Tensor::from_slice(&[1.0_f32, -2.0, 50.0, -40.0]).view([1, 4, 1, 1]);
        let moments = Moments::from_concatenated(&encoded);
        let flat = |tensor: &Tensor| Vec::<f64>::try_from(tensor.view(-1)).expect("numbers");
        assert_eq!(flat(&moments.mean), [1.0, -2.0]);
        assert_eq!(flat(&moments.logvar), [20.0, -30.0]);
        assert_eq!(flat(&moments.concatenated()), [1.0, -2.0, 20.0, -30.0]);
        // The standard normal is no nat away from itself; one with mean 1 and twice the deviation is 2 - ln 2 away.
        let kl = |mean: f32, logvar: f32| {
            flat(&Moments::from_concatenated(&Tensor::from_slice(&[mean, logvar]).view([1, 2, 1, 1])).kl())[0]
        };
        assert_eq!(kl(0.0, 0.0), 0.0);
        assert!((kl(1.0, 2.0 * 2.0_f32.ln()) - (2.0 - 2.0_f64.ln())).abs() < 1e-6);
        let noise = Tensor::from_slice(&[3.0_f32]).view([1, 1, 1, 1]);
        let quarter = Moments::from_concatenated(&Tensor::from_slice(&[1.0, 0.25_f32.ln()]).view([1, 2, 1, 1]));
        assert!((flat(&quarter.sample(&noise))[0] - 2.5).abs() < 1e-6);
    }
}
