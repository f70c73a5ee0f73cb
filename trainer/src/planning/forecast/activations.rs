//! The number of elements that autograd saves in a forward pass.

use arinar_model::config::ModelConfig;

use super::processor::Processor;

/// Elements of tensors that autograd saves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SavedElements {
    /// Elements that are float32 in any precision: residual streams, the branches added to them, modulation, mixtures.
    pub full: f64,
    /// Elements in the precision of the run: operands and results of matrix products.
    pub operands: f64,
}

impl SavedElements {
    fn times(self, count: f64) -> Self {
        Self { full: count * self.full, operands: count * self.operands }
    }

    fn and(self, other: Self) -> Self {
        Self { full: self.full + other.full, operands: self.operands + other.operands }
    }
}

/// Counts the elements for one image with `masked` masked tokens.
pub(crate) fn saved_elements(model: &ModelConfig, masked: f64, processor: Processor) -> SavedElements {
    let (length, buffer) = (model.sequence_length() as f64, model.outer.buffer_tokens as f64);
    let encoder = outer_block(model, buffer + length - masked, processor).times(model.outer.encoder_depth as f64);
    let decoder = outer_block(model, buffer + length, processor).times(model.outer.decoder_depth as f64);
    encoder.and(decoder).and(head(model, processor).times(masked))
}

/// Counts the elements of a block of the outer layer on `tokens` tokens.
fn outer_block(model: &ModelConfig, tokens: f64, processor: Processor) -> SavedElements {
    let rows = tokens * model.outer.width as f64;
    // Full: both residual sums. Operands: norm 1; queries, keys, values; the output of attention and its transpose; norm 2; the
    // two hidden tensors of the feed-forward layer, which are four times as wide.
    let plain = SavedElements { full: 2.0, operands: 1.0 + 3.0 + 2.0 + 1.0 + 2.0 * 4.0 }.times(rows);
    if model.outer.dropout == 0.0 {
        return plain;
    }
    // Full: mask and branch of both sums. Operands: mask and product in the feed-forward layer.
    let dropped = SavedElements { full: 4.0, operands: 2.0 * 4.0 }.times(rows);
    let attention = match processor {
        // Without the fused kernel: scaled queries, copies of keys and values; weights, mask, product.
        Processor::Cpu => 3.0 * rows + 3.0 * model.outer.heads as f64 * tokens * tokens,
        Processor::Gpu => 0.0,
    };
    plain.and(dropped).and(SavedElements { full: 0.0, operands: attention })
}

/// Counts the elements of the inner layer on one token.
fn head(model: &ModelConfig, processor: Processor) -> SavedElements {
    let (features, width) = (model.vae.channels as f64, model.head.width as f64);
    let depth = model.head.depth as f64;
    // As in the outer layer, with two modulated norms, and the branches of two scaled sums.
    let block = SavedElements { full: 2.0 + 2.0 + 2.0, operands: 15.0 }.times(features * depth * width);
    let attention = match processor {
        Processor::Cpu => 0.0,
        // The fused kernel is not used for so few features: scaled queries, copies of keys and values; scores and weights.
        Processor::Gpu => depth * features * (3.0 * width + 2.0 * model.head.heads as f64 * features),
    };
    let modulation = (6.0 * depth + 2.0) * width;
    // The output, and about four tensors of its size in the computation of the likelihood.
    let output = 5.0 * 3.0 * model.head.gaussians as f64;
    block.and(SavedElements { full: features * (3.0 * width + output) + modulation, operands: attention })
}
