//! How much memory a rank needs, part by part.

use arinar_model::{config::ModelConfig, precision::Precision};
use serde::Serialize;

use crate::config::{BatchShare, TrainConfig};

/// Bytes of a float32.
const FULL: f64 = 4.0;
/// Bytes of a bfloat16.
const HALF: f64 = 2.0;
/// What the sum of all kept activations is multiplied by: gradients on their way, copies that kernels make, and what
/// the allocator cannot use again. Measured, see [`Memory::activations`].
const OVERHEAD: f64 = 1.45;
/// What a process takes besides when it first computes: libtorch's code, its threads' buffers.
const FIRST_USE: u64 = 30_000_000;
/// The estimate of all parts was within this share of the measured memory wherever that was compared.
pub const EXACTNESS: f64 = 0.2;

/// Bytes of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// What the process holds besides its model: the program, libtorch above all.
    pub process: u64,
    /// Weights, float32.
    pub weights: u64,
    /// Gradients, float32.
    pub gradients: u64,
    /// Both moments and the averages of this rank's part of the parameters, float32.
    pub optimizer_and_ema: u64,
    /// Copies of the weights in bfloat16, where that is computed in.
    pub half_weights: u64,
    /// Activations that wait for the backward pass of one micro-batch. Counted from the shapes of the tensors that
    /// autograd keeps, times a factor measured on a CPU. In bfloat16 they take about as much there: residual streams and
    /// layer norms stay float32, and casts are kept beside them.
    pub activations: u64,
    /// Micro-batches read ahead.
    pub batches: u64,
    /// A checkpoint's copy of this rank's part, while it is written.
    pub snapshot: u64,
}

impl Memory {
    /// Of a rank among `world` that takes `batch` through the model, in a process that holds `process` bytes already.
    pub fn of_rank(config: &TrainConfig, world: usize, batch: BatchShare, process: u64) -> Self {
        let model = &config.model;
        let parameters = model.parameter_count() as f64;
        let part = parameters / world as f64;
        let half = config.precision == Precision::Bf16;
        let micro = batch.micro as f64;
        // Latents, their labels, and the raw moments that they are drawn from.
        let sample = (model.sequence_length() * model.vae.channels) as f64 * FULL;
        Self {
            process: process + FIRST_USE,
            weights: bytes(FULL * parameters),
            gradients: bytes(FULL * parameters),
            optimizer_and_ema: bytes(3.0 * FULL * part),
            half_weights: bytes(if half { HALF * parameters } else { 0.0 }),
            activations: bytes(FULL * OVERHEAD * micro * kept_elements(model, model.mean_masked())),
            batches: bytes(sample * micro * (config.data.look_ahead + 1) as f64),
            snapshot: bytes(4.0 * FULL * part),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// All but the copy of a checkpoint, which is left out where memory has no room for it.
    pub fn while_training(&self) -> u64 {
        self.total() - self.snapshot
    }

    /// Every part under its name.
    pub fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("process", self.process),
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("moments and averages", self.optimizer_and_ema),
            ("bf16 weights", self.half_weights),
            ("activations", self.activations),
            ("batches", self.batches),
            ("checkpoint copy", self.snapshot),
        ]
    }
}

/// The largest micro-batch up to `most` that `fits`, as every smaller one then does.
pub fn largest_micro(most: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut good, mut bad) = (0, most + 1);
    while good + 1 < bad {
        let middle = good + (bad - good) / 2;
        if fits(middle) { good = middle } else { bad = middle }
    }
    (good > 0).then_some(good)
}

fn bytes(count: f64) -> u64 {
    count as u64
}

/// Elements of the tensors that autograd keeps for one picture.
fn kept_elements(model: &ModelConfig, masked: f64) -> f64 {
    let (length, buffer) = (model.sequence_length() as f64, model.outer.buffer_tokens as f64);
    let encoder = model.outer.encoder_depth as f64 * outer_block(model, buffer + length - masked);
    let decoder = model.outer.decoder_depth as f64 * outer_block(model, buffer + length);
    encoder + decoder + masked * head(model)
}

/// Of a block of the outer layer on `tokens` tokens.
fn outer_block(model: &ModelConfig, tokens: f64) -> f64 {
    let rows = tokens * model.outer.width as f64;
    // Norm 1; queries, keys, values; what attention gives, and its transpose; the sum; norm 2; the two hidden tensors
    // of the feed-forward layer, four times as wide; the sum.
    let plain = 1.0 + 3.0 + 2.0 + 1.0 + 1.0 + 2.0 * 4.0 + 1.0;
    if model.outer.dropout == 0.0 {
        return plain * rows;
    }
    // Scaled queries and copies of keys and values; mask and branch of two sums; mask and product in the feed-forward
    // layer. Attention without the fused kernel: weights, mask, product.
    let dropped = 3.0 + 4.0 + 2.0 * 4.0;
    (plain + dropped) * rows + 3.0 * model.outer.heads as f64 * tokens * tokens
}

/// Of the inner layer on one token.
fn head(model: &ModelConfig) -> f64 {
    let (features, width) = (model.vae.channels as f64, model.head.width as f64);
    let depth = model.head.depth as f64;
    // As in the outer layer, and each norm twice: before and after it is modulated; branches of two scaled sums.
    let block = 17.0 + 2.0 + 2.0;
    let modulation = (6.0 * depth + 2.0) * width;
    // The output, and about four tensors as large on the way to the likelihood.
    let output = 5.0 * 3.0 * model.head.gaussians as f64;
    features * (depth * block * width + 3.0 * width + output) + modulation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arinar_b() -> TrainConfig {
        let text = include_str!("../../../configs/arinar_b.yaml");
        crate::config::parse(text, "arinar_b.yaml", &[]).expect("a shipped configuration")
    }

    #[test]
    fn ranks_share_the_optimizer_and_nothing_else() {
        let config = arinar_b();
        let batch = BatchShare { micro: 4, accumulation: 16 };
        let (one, four) = (Memory::of_rank(&config, 1, batch, 0), Memory::of_rank(&config, 4, batch, 0));
        assert_eq!((one.weights, one.gradients), (851_798_064, 851_798_064));
        assert_eq!(one.optimizer_and_ema, 3 * one.weights);
        assert_eq!((four.optimizer_and_ema, four.snapshot), (one.optimizer_and_ema / 4, one.weights));
        assert_eq!((four.weights, four.activations), (one.weights, one.activations));
        assert_eq!(one.total(), one.parts().iter().map(|(_, bytes)| bytes).sum::<u64>());
    }

    #[test]
    fn the_largest_micro_batch_is_found() {
        for largest in [1, 2, 7, 99, 100] {
            assert_eq!(largest_micro(100, |micro| micro <= largest), Some(largest));
        }
        assert_eq!((largest_micro(100, |_| false), largest_micro(5, |_| true)), (None, Some(5)));
    }

    #[test]
    fn bf16_adds_a_copy_of_the_weights() {
        let full = TrainConfig { precision: Precision::Fp32, ..arinar_b() };
        let half = TrainConfig { precision: Precision::Bf16, ..full.clone() };
        let batch = BatchShare { micro: 4, accumulation: 1 };
        let (full, half) = (Memory::of_rank(&full, 1, batch, 0), Memory::of_rank(&half, 1, batch, 0));
        assert_eq!(half.half_weights, full.weights / 2);
        assert_eq!(half.activations, full.activations);
    }
}
