//! The complete autoencoder.

use tch::{Tensor, nn};

use super::blocks::conv1x1;
use super::config::VaeConfig;
use super::decoder::Decoder;
use super::encoder::Encoder;
use super::moments::Moments;

/// An autoencoder that maps an image to the [`Moments`] of its latent and a latent back to an image.
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

    /// Encodes images to the distributions of their latents.
    ///
    /// # Shapes
    /// `images` [B, 3, H, W] in [-1, 1]; H and W are multiples of the stride. The moments are [B, C, H/S, W/S].
    pub fn encode(&self, images: &Tensor) -> Moments {
        Moments::from_concatenated(&self.encoder.forward(images).apply(&self.quant_conv))
    }

    /// Decodes latents to images.
    ///
    /// # Shapes
    /// `latents` [B, C, h, w], unscaled (a sampled latent divided by the scale); returns [B, 3, h*S, w*S] with values
    /// roughly in [-1, 1], not clamped.
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        self.decoder.forward(&latents.apply(&self.post_quant_conv))
    }
}
