//! How much memory a rank needs, part by part.

use arinar_model::{config::ModelConfig, precision::Precision};
use serde::Serialize;
use tch::Device;

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
/// The same with a GPU: libtorch's kernels for it, and the driver's part of the process. Assumed, not measured.
const FIRST_USE_OF_GPU: u64 = 1_000_000_000;
/// The estimate of all parts was within this share of the measured memory wherever that was compared: on CPUs.
pub const EXACTNESS: f64 = 0.2;

/// What a rank computes on. The model, its gradients, the optimizer's state and the activations are in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Processor {
    /// The machine's own, which the memory of the machine belongs to.
    Cpu,
    /// One with a memory of its own.
    Gpu,
}

impl From<Device> for Processor {
    fn from(device: Device) -> Self {
        if matches!(device, Device::Cuda(_)) { Self::Gpu } else { Self::Cpu }
    }
}

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
    /// layer norms stay float32, and casts are kept beside them. On a GPU, where nobody has measured, what goes through
    /// matrix products in bfloat16 counts half, and the outer layer's attention keeps no table of weights.
    pub activations: u64,
    /// Micro-batches read ahead.
    pub batches: u64,
    /// A checkpoint's copy of this rank's part, while it is written.
    pub snapshot: u64,
}

impl Memory {
    /// Of a rank among `world` that takes `batch` through the model on `processor`, in a process that holds `process`
    /// bytes already.
    pub fn of_rank(config: &TrainConfig, processor: Processor, world: usize, batch: BatchShare, process: u64) -> Self {
        let model = &config.model;
        let parameters = model.parameter_count() as f64;
        let part = parameters / world as f64;
        let half = config.precision == Precision::Bf16;
        let micro = batch.micro as f64;
        // Latents, their labels, and the raw moments that they are drawn from.
        let sample = (model.sequence_length() * model.vae.channels) as f64 * FULL;
        let (factor, first_use) = match processor {
            Processor::Cpu => (FULL, FIRST_USE),
            Processor::Gpu => (if half { HALF } else { FULL }, FIRST_USE_OF_GPU),
        };
        let kept = kept_elements(model, model.mean_masked(), processor);
        Self {
            process: process + first_use,
            weights: bytes(FULL * parameters),
            gradients: bytes(FULL * parameters),
            optimizer_and_ema: bytes(3.0 * FULL * part),
            half_weights: bytes(if half { HALF * parameters } else { 0.0 }),
            activations: bytes(OVERHEAD * micro * (FULL * kept.full + factor * kept.factors)),
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

    /// Of all of it what lies in the GPU's memory, where the rank computes on one.
    pub fn on_gpu(&self) -> u64 {
        self.weights + self.gradients + self.optimizer_and_ema + self.half_weights + self.activations
    }

    /// The rest then, in the machine's. A checkpoint's copy is in it: it leaves a GPU by no other way.
    pub fn beside_gpu(&self) -> u64 {
        self.total() - self.on_gpu()
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

/// Elements of tensors that autograd keeps.
#[derive(Clone, Copy, Debug)]
struct Kept {
    /// Float32 in any precision: residual streams, branches that are added to them, what modulates, mixtures.
    full: f64,
    /// Of the precision's kind: what matrix products take and give.
    factors: f64,
}

impl Kept {
    fn times(self, count: f64) -> Self {
        Self { full: count * self.full, factors: count * self.factors }
    }

    fn and(self, other: Self) -> Self {
        Self { full: self.full + other.full, factors: self.factors + other.factors }
    }
}

/// For one picture.
fn kept_elements(model: &ModelConfig, masked: f64, processor: Processor) -> Kept {
    let (length, buffer) = (model.sequence_length() as f64, model.outer.buffer_tokens as f64);
    let encoder = outer_block(model, buffer + length - masked, processor).times(model.outer.encoder_depth as f64);
    let decoder = outer_block(model, buffer + length, processor).times(model.outer.decoder_depth as f64);
    encoder.and(decoder).and(head(model, processor).times(masked))
}

/// Of a block of the outer layer on `tokens` tokens.
fn outer_block(model: &ModelConfig, tokens: f64, processor: Processor) -> Kept {
    let rows = tokens * model.outer.width as f64;
    // Both sums. Norm 1; queries, keys, values; what attention gives, and its transpose; norm 2; the two hidden tensors
    // of the feed-forward layer, four times as wide.
    let plain = Kept { full: 2.0, factors: 1.0 + 3.0 + 2.0 + 1.0 + 2.0 * 4.0 }.times(rows);
    if model.outer.dropout == 0.0 {
        return plain;
    }
    // Mask and branch of two sums; mask and product in the feed-forward layer.
    let dropped = Kept { full: 4.0, factors: 2.0 * 4.0 }.times(rows);
    let attention = match processor {
        // Without the fused kernel: scaled queries and copies of keys and values; weights, mask, product.
        Processor::Cpu => 3.0 * rows + 3.0 * model.outer.heads as f64 * tokens * tokens,
        Processor::Gpu => 0.0,
    };
    plain.and(dropped).and(Kept { full: 0.0, factors: attention })
}

/// Of the inner layer on one token.
fn head(model: &ModelConfig, processor: Processor) -> Kept {
    let (features, width) = (model.vae.channels as f64, model.head.width as f64);
    let depth = model.head.depth as f64;
    // As in the outer layer, and each norm before it is modulated; branches of two scaled sums.
    let block = Kept { full: 2.0 + 2.0 + 2.0, factors: 15.0 }.times(features * depth * width);
    let attention = match processor {
        Processor::Cpu => 0.0,
        // So few features go without the fused kernel: scaled queries and copies of keys and values; scores and weights.
        Processor::Gpu => depth * features * (3.0 * width + 2.0 * model.head.heads as f64 * features),
    };
    let modulation = (6.0 * depth + 2.0) * width;
    // The output, and about four tensors as large on the way to the likelihood.
    let output = 5.0 * 3.0 * model.head.gaussians as f64;
    block.and(Kept { full: features * (3.0 * width + output) + modulation, factors: attention })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arinar_b() -> TrainConfig {
        let text = include_str!("../../../../configs/arinar_b.yaml");
        crate::config::parse(text, "arinar_b.yaml", &[]).expect("a shipped configuration")
    }

    #[test]
    fn ranks_share_the_optimizer_and_nothing_else() {
        let config = arinar_b();
        let batch = BatchShare { micro: 4, accumulation: 16 };
        let of_world = |world| Memory::of_rank(&config, Processor::Cpu, world, batch, 0);
        let (one, four) = (of_world(1), of_world(4));
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

    /// Of a rank with four pictures at once.
    fn in_precision(precision: Precision, processor: Processor, dropout: f64) -> Memory {
        let mut config = TrainConfig { precision, ..arinar_b() };
        config.model.outer.dropout = dropout;
        Memory::of_rank(&config, processor, 1, BatchShare { micro: 4, accumulation: 1 }, 0)
    }

    #[test]
    fn bf16_adds_a_copy_of_the_weights() {
        let of = |precision| in_precision(precision, Processor::Cpu, 0.1);
        let (full, half) = (of(Precision::Fp32), of(Precision::Bf16));
        assert_eq!(half.half_weights, full.weights / 2);
        assert_eq!(half.activations, full.activations);
    }

    #[test]
    fn a_gpu_keeps_less_of_a_pass_and_the_machine_what_is_no_tensor() {
        use Precision::{Bf16, Fp32};
        use Processor::{Cpu, Gpu};
        // What it saves in float32 is the detour that dropout makes on a CPU; its own, in the head, is a short one.
        let detour = in_precision(Fp32, Gpu, 0.0).activations as f64 / in_precision(Fp32, Cpu, 0.0).activations as f64;
        assert!((1.0..1.1).contains(&detour), "{detour}");
        let of = |precision, processor| in_precision(precision, processor, 0.1);
        assert!(of(Fp32, Gpu).activations < of(Fp32, Cpu).activations);
        let share = of(Bf16, Gpu).activations as f64 / of(Fp32, Gpu).activations as f64;
        assert!((0.55..0.75).contains(&share), "{share}");
        let memory = of(Bf16, Gpu);
        assert_eq!(memory.on_gpu() + memory.beside_gpu(), memory.total());
        assert_eq!(memory.beside_gpu(), memory.process + memory.batches + memory.snapshot);
        assert_eq!((Processor::from(Device::Cuda(1)), Processor::from(Device::Cpu)), (Gpu, Cpu));
    }
}
