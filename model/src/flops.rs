//! Floating-point operations per image. Only matrix products are counted, with two operations per multiply-add.
//! Norms, activations, dropout and the optimizer are left out: they are few operations, though not always little time.
//!
//! Shapes: N tokens in a sequence, D width, F features per token.

use serde::Serialize;

use crate::config::{MLP_RATIO, ModelConfig};
use crate::schedule::{mask_lengths, mask_ratio_quantile, num_masked};

/// Number of quantiles that approximate the distribution of mask ratios.
const QUANTILES: i64 = 4096;
/// For each product of the forward pass, the backward pass computes two: one for the inputs and one for the weights.
const FORWARD_AND_BACKWARD: f64 = 3.0;

/// The number of operations in each part of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Flops {
    /// The outer layer's encoder, applied to the buffer and the kept tokens.
    pub encoder: f64,
    /// The outer layer's decoder, applied to the buffer and all tokens.
    pub decoder: f64,
    /// The inner layer, applied to the masked tokens.
    pub head: f64,
}

impl Flops {
    /// Returns the sum over all parts.
    pub fn total(&self) -> f64 {
        self.encoder + self.decoder + self.head
    }

    fn scaled(&self, factor: f64) -> Self {
        Self { encoder: self.encoder * factor, decoder: self.decoder * factor, head: self.head * factor }
    }

    fn plus(&self, other: &Self) -> Self {
        Self {
            encoder: self.encoder + other.encoder,
            decoder: self.decoder + other.decoder,
            head: self.head + other.head,
        }
    }
}

impl ModelConfig {
    /// Returns the number of masked tokens per image, averaged over the distribution of mask ratios in training.
    pub fn mean_masked(&self) -> f64 {
        self.masked_quantiles().map(|masked| masked as f64).sum::<f64>() / QUANTILES as f64
    }

    /// Returns the operations of a training forward pass on one image with `masked` masked tokens.
    pub(crate) fn forward_flops(&self, masked: i64) -> Flops {
        let (width, length) = (self.outer.width, self.sequence_length());
        let (seen, all) = (self.outer.buffer_tokens + length - masked, self.outer.buffer_tokens + length);
        let (encoder_depth, decoder_depth) = (self.outer.encoder_depth as f64, self.outer.decoder_depth as f64);
        Flops {
            encoder: linear(length - masked, self.vae.channels, width) + encoder_depth * block(seen, width),
            decoder: linear(seen, width, width) + decoder_depth * block(all, width),
            head: masked as f64 * self.head_flops(),
        }
    }

    /// Returns the operations of a forward and backward pass on one image, averaged over the distribution of mask
    /// ratios in training.
    pub fn training_flops(&self) -> Flops {
        let sum = self.masked_quantiles().fold(Flops::default(), |sum, masked| sum.plus(&self.forward_flops(masked)));
        sum.scaled(FORWARD_AND_BACKWARD / QUANTILES as f64)
    }

    /// Returns the operations of sampling one image in `steps` steps. With guidance, the model runs twice: for the
    /// class and for the null class.
    pub fn sampling_flops(&self, steps: i64, guided: bool) -> f64 {
        let mut masked = self.sequence_length();
        let mut sum = 0.0;
        for left in mask_lengths(self.sequence_length(), steps) {
            let outer = self.forward_flops(masked);
            sum += outer.encoder + outer.decoder + (masked - left) as f64 * self.head_flops();
            masked = left;
        }
        if guided { 2.0 * sum } else { sum }
    }

    /// Returns the operations of the inner layer on all features of one token.
    fn head_flops(&self) -> f64 {
        let (width, condition, features) = (self.head.width, self.outer.width, self.vae.channels);
        let modulation = linear(1, condition, (6 * self.head.depth + 2) * width);
        let ends = linear(1, condition, width) + linear(features - 1, 1, width);
        let blocks = self.head.depth as f64 * block(features, width);
        modulation + ends + blocks + linear(features, width, 3 * self.head.gaussians)
    }

    fn masked_quantiles(&self) -> impl Iterator<Item = i64> {
        let (length, least) = (self.sequence_length(), self.outer.mask_ratio_min);
        let quantile = |index: i64| (index as f64 + 0.5) / QUANTILES as f64;
        (0..QUANTILES).map(move |index| num_masked(length, mask_ratio_quantile(quantile(index), least)))
    }
}

/// Returns the operations of a linear layer applied to `rows` rows.
fn linear(rows: i64, inputs: i64, outputs: i64) -> f64 {
    2.0 * rows as f64 * inputs as f64 * outputs as f64
}

/// Returns the operations of a transformer block: queries, keys, values and projection, the two products of attention,
/// and the feed-forward layer.
fn block(tokens: i64, width: i64) -> f64 {
    linear(tokens, width, (4 + 2 * MLP_RATIO) * width) + 2.0 * linear(tokens, width, tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arinar::Arinar;
    use crate::weights;
    use tch::{Device, nn};

    fn small() -> ModelConfig {
        let mut config = ModelConfig::arinar_b();
        (config.image_size, config.vae.stride, config.vae.channels, config.classes) = (16, 4, 3, 5);
        (config.outer.width, config.outer.heads, config.outer.buffer_tokens) = (24, 4, 5);
        (config.outer.encoder_depth, config.outer.decoder_depth) = (2, 3);
        (config.head.width, config.head.heads, config.head.depth, config.head.gaussians) = (20, 2, 2, 3);
        config
    }

    /// Returns the part of the model that the matrix `name` belongs to (encoder 0, decoder 1, head 2) and the number of
    /// rows it is applied to per image. Embedding tables are looked up, not multiplied: they give `None`.
    fn rows(name: &str, config: &ModelConfig, masked: i64) -> Option<(usize, i64)> {
        let (length, buffer, features) = (config.sequence_length(), config.outer.buffer_tokens, config.vae.channels);
        let seen = buffer + length - masked;
        Some(match name {
            "z_proj.weight" => (0, length - masked),
            "decoder_embed.weight" => (1, seen),
            _ if name.starts_with("encoder_blocks.") => (0, seen),
            _ if name.starts_with("decoder_blocks.") => (1, buffer + length),
            "arhead.input_proj.weight" => (2, masked * (features - 1)),
            "arhead.head.weight" => (2, masked * features),
            // There is one condition vector per token.
            "arhead.cond_proj.weight" => (2, masked),
            _ if name.starts_with("arhead.") && name.contains("ada_lin") => (2, masked),
            _ if name.starts_with("arhead.blocks.") => (2, masked * features),
            "class_emb.weight" => return None,
            _ => panic!("unknown parameter {name}"),
        })
    }

    /// Counts the operations from the matrices of an actual model, plus the products of attention.
    fn counted(config: &ModelConfig, masked: i64) -> Flops {
        let store = nn::VarStore::new(Device::Cpu);
        let _model = Arinar::new(&store.root(), config);
        let mut parts = [0_i64; 3];
        for (name, tensor) in weights::named(&store) {
            let &[outputs, inputs] = tensor.size().as_slice() else { continue };
            if name == "fake_latent" {
                continue;
            }
            if let Some((part, rows)) = rows(&name, config, masked) {
                parts[part] += 2 * rows * outputs * inputs;
            }
        }
        let (length, buffer, features) = (config.sequence_length(), config.outer.buffer_tokens, config.vae.channels);
        let sequences = [
            (0, config.outer.encoder_depth, 1, buffer + length - masked, config.outer.width, config.outer.heads),
            (1, config.outer.decoder_depth, 1, buffer + length, config.outer.width, config.outer.heads),
            (2, config.head.depth, masked, features, config.head.width, config.head.heads),
        ];
        for (part, depth, sequences, tokens, width, heads) in sequences {
            let channels = width / heads;
            // Queries by keys, [N, C] x [C, N]; weights by values, [N, N] x [N, C].
            parts[part] +=
                depth * sequences * heads * (2 * tokens * channels * tokens + 2 * tokens * tokens * channels);
        }
        let [encoder, decoder, head] = parts.map(|part| part as f64);
        Flops { encoder, decoder, head }
    }

    #[test]
    fn the_formula_counts_every_matrix_of_the_model() {
        let config = small();
        for masked in [1, 12, 16] {
            assert_eq!(config.forward_flops(masked), counted(&config, masked), "{masked} masked");
        }
    }

    #[test]
    fn a_training_costs_three_forward_passes_at_the_mean_mask() {
        let mut config = small();
        config.outer.mask_ratio_min = 0.999_999;
        assert_eq!(config.mean_masked(), 16.0);
        let (training, forward) = (config.training_flops().total(), config.forward_flops(16).total());
        assert!((training / forward - 3.0).abs() < 1e-12);
        // The closed-form mean of the official distribution is 1 - 0.25 (phi(0) - phi(1.2)) / (Phi(0) - Phi(-1.2)).
        // Rounding the number of tokens up adds half a token.
        let mean = ModelConfig::arinar_b().mean_masked();
        assert!((mean - (256.0 * 0.867_02 + 0.5)).abs() < 0.2, "{mean}");
    }

    #[test]
    fn sampling_sees_every_token_once() {
        let config = small();
        let one = config.sampling_flops(1, false);
        assert_eq!(one, config.forward_flops(16).total());
        assert_eq!(config.sampling_flops(1, true), 2.0 * one);
        let heads = 16.0 * config.head_flops();
        assert!(config.sampling_flops(16, false) - heads > 15.0 * (one - heads));
    }
}
