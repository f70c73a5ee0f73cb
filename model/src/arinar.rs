//! The whole model: the outer layer over tokens and the inner layer over the features of a token.
//!
//! Shapes: B samples, C latent channels, H = W side of the latent grid, L = H W tokens, M masked tokens.

use tch::{Device, Kind, Tensor, nn};

use crate::config::ModelConfig;
use crate::head::ArinarHead;
use crate::linear::Linear;
use crate::mask::{self, Mask};
use crate::outer::Mar;
use crate::precision::Precision;
pub use crate::sampling::SampleOptions;

/// ARINAR (arXiv 2503.02883).
#[derive(Debug)]
pub struct Arinar {
    config: ModelConfig,
    outer: Mar,
    head: ArinarHead,
}

impl Arinar {
    /// Creates the parameters under the official names at `path` with the official initialisation, drawn
    /// from libtorch's generator (seed it with [`tch::manual_seed`]). `config` must have passed
    /// [`ModelConfig::validate`].
    pub fn new(path: &nn::Path<'_>, config: &ModelConfig) -> Self {
        let outer = Mar::new(path, config.sequence_length(), config.classes, &config.vae, &config.outer);
        let head = ArinarHead::new(&(path / "arhead"), config.outer.width, config.vae.channels, &config.head);
        Self { config: config.clone(), outer, head }
    }

    /// Computes matrix products in `precision` from now on; a new model does in float32.
    pub fn set_precision(&mut self, precision: Precision) {
        for linear in self.linears() {
            linear.set_precision(precision);
        }
    }

    /// Keeps the weights of matrix products in the precision of the products, so that no forward pass casts them
    /// again: for weights that do not change any more. Changes to the variables are not seen from then on, and nothing
    /// has a gradient.
    pub fn freeze(&mut self) {
        for linear in self.linears() {
            linear.freeze();
        }
    }

    /// The layers whose products may be computed in another precision.
    pub(crate) fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.outer.linears().chain(self.head.linears())
    }

    /// The sizes.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The outer layer.
    pub fn outer(&self) -> &Mar {
        &self.outer
    }

    /// The inner layer.
    pub fn head(&self) -> &ArinarHead {
        &self.head
    }

    /// Where the parameters lie.
    pub fn device(&self) -> Device {
        self.outer.device()
    }

    /// Training loss: negative log-likelihood of a masked token, averaged over masked tokens, without the
    /// constant C log(2 pi) / 2. `train` turns dropout on.
    ///
    /// # Shapes
    /// `latents` [B, C, H, W], already scaled; `labels` `[B]` i64; `drop_label` `[B]` bool, true for the null
    /// class; returns a scalar.
    pub fn loss(&self, latents: &Tensor, labels: &Tensor, drop_label: &Tensor, mask: &Mask, train: bool) -> Tensor {
        let tokens = patchify(latents);
        let classes = self.outer.class_embedding(labels, drop_label);
        let encoded = self.outer.encode(&tokens, &classes, mask, train);
        // Only masked tokens count, so only they go through the head; they come last.
        let z = self.outer.decode(&encoded, mask, train).narrow(1, mask.num_kept(), mask.num_masked());
        let targets = mask::gather(&tokens, mask.masked());
        let z = z.reshape([-1, self.config.outer.width]); // [B M, D]
        self.head.negative_log_likelihood(&z, &targets.view([-1, self.config.vae.channels])).mean(None::<Kind>)
    }

    /// Tokens back in place, [B, L, C] to [B, C, H, W].
    pub(crate) fn unpatchify(&self, tokens: &Tensor) -> Tensor {
        let (grid, channels) = (self.config.grid(), self.config.vae.channels);
        tokens.transpose(1, 2).reshape([-1, channels, grid, grid])
    }
}

/// One token per latent position, row by row, [B, C, H, W] to [B, L, C].
pub fn patchify(latents: &Tensor) -> Tensor {
    latents.flatten(2, 3).transpose(1, 2)
}
