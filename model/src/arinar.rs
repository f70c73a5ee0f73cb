//! The complete model: the outer layer over tokens and the inner layer over the features of a token.
//!
//! Shapes: B samples, C latent channels, H = W side of the latent grid, L = H W tokens, M masked tokens.

use tch::{Device, Kind, Tensor, nn};

use crate::config::ModelConfig;
use crate::head::ArinarHead;
use crate::linear::Linear;
use crate::mask::{self, Mask};
use crate::outer::Mar;
use crate::precision::Precision;

/// The ARINAR model (arXiv 2503.02883).
#[derive(Debug)]
pub struct Arinar {
    config: ModelConfig,
    outer: Mar,
    head: ArinarHead,
}

impl Arinar {
    /// Creates the parameters at `path` under their official names. They are initialised as in the official code, with
    /// libtorch's generator; seed it with [`tch::manual_seed`]. `config` must have passed [`ModelConfig::validate`].
    pub fn new(path: &nn::Path<'_>, config: &ModelConfig) -> Self {
        let outer = Mar::new(path, config.sequence_length(), config.classes, &config.vae, &config.outer);
        let head = ArinarHead::new(&(path / "arhead"), config.outer.width, config.vae.channels, &config.head);
        Self { config: config.clone(), outer, head }
    }

    /// Sets the precision of subsequent matrix products. A new model computes in float32.
    pub fn set_precision(&mut self, precision: Precision) {
        for linear in self.linears() {
            linear.set_precision(precision);
        }
    }

    /// Casts the weights of matrix products to the current precision once, so that forward passes do not cast them
    /// again. Use this for inference: the model ignores later changes to its variables and has no gradients.
    pub fn freeze(&mut self) {
        for linear in self.linears() {
            linear.freeze();
        }
    }

    /// Returns the layers that follow the model's precision.
    pub(crate) fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.outer.linears().chain(self.head.linears())
    }

    /// Returns the configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the outer layer.
    pub fn outer(&self) -> &Mar {
        &self.outer
    }

    /// Returns the inner layer.
    pub fn head(&self) -> &ArinarHead {
        &self.head
    }

    /// Returns the device of the parameters.
    pub fn device(&self) -> Device {
        self.outer.device()
    }

    /// Computes the training loss: the negative log-likelihood per token, averaged over the masked tokens, without the
    /// constant C log(2 pi) / 2. `train` enables dropout.
    ///
    /// # Shapes
    /// `latents` [B, C, H, W], already scaled; `labels` `[B]` i64; `drop_label` `[B]` bool, true to use the null class;
    /// returns a scalar.
    pub fn loss(&self, latents: &Tensor, labels: &Tensor, drop_label: &Tensor, mask: &Mask, train: bool) -> Tensor {
        let tokens = patchify(latents);
        let classes = self.outer.class_embedding(labels, drop_label);
        let encoded = self.outer.encode(&tokens, &classes, mask, train);
        // Only masked tokens contribute to the loss, so only they pass through the head. They come last.
        let z = self.outer.decode(&encoded, mask, train).narrow(1, mask.num_kept(), mask.num_masked());
        let targets = mask::gather(&tokens, mask.masked());
        let z = z.reshape([-1, self.config.outer.width]); // [B M, D]
        self.head.negative_log_likelihood(&z, &targets.view([-1, self.config.vae.channels])).mean(None::<Kind>)
    }

    /// Arranges tokens in the latent grid, [B, L, C] to [B, C, H, W].
    pub(crate) fn unpatchify(&self, tokens: &Tensor) -> Tensor {
        let (grid, channels) = (self.config.grid(), self.config.vae.channels);
        tokens.transpose(1, 2).reshape([-1, channels, grid, grid])
    }
}

/// Flattens the latent grid row by row to one token per position, [B, C, H, W] to [B, L, C].
pub fn patchify(latents: &Tensor) -> Tensor {
    latents.flatten(2, 3).transpose(1, 2)
}

#[cfg(test)]
mod tests;
