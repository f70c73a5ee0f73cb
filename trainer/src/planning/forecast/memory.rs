//! An estimate of the memory of a rank, part by part.

use arinar_model::precision::Precision;
use serde::Serialize;

use super::{activations::saved_elements, processor::Processor};
use crate::config::{BatchShare, TrainConfig};

/// Bytes of a float32.
const FULL: f64 = 4.0;
/// Bytes of a bfloat16.
const HALF: f64 = 2.0;
/// Factor on the size of all saved activations, for gradients in flight, copies made by kernels, and fragmentation. Measured
/// on CPUs, see [`MemoryEstimate::activations`].
const OVERHEAD: f64 = 1.45;
/// Memory of a process that is allocated by its first computation: libtorch's code and the buffers of its threads.
const FIRST_USE: u64 = 30_000_000;
/// The same with a GPU: libtorch's kernels for it, and the driver's part of the process. An assumption, not a measurement.
const FIRST_USE_OF_GPU: u64 = 1_000_000_000;
/// The largest relative error of the estimate in all comparisons with measurements, which were made on CPUs.
pub const MEMORY_TOLERANCE: f64 = 0.2;

/// The memory of one rank, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct MemoryEstimate {
    /// The process without its model: the program and its libraries, of which libtorch is the largest.
    pub process: u64,
    /// Weights, float32.
    pub weights: u64,
    /// Gradients, float32.
    pub gradients: u64,
    /// Both moments and the moving averages of this rank's part of the parameters, float32.
    pub optimizer_and_ema: u64,
    /// Copies of the weights in bfloat16, if that is the precision of the run.
    pub half_weights: u64,
    /// Activations that are saved for the backward pass of one micro-batch: the size of the tensors that autograd saves,
    /// times a factor measured on CPUs. In bfloat16 it is about the same on a CPU, because residual streams and layer norms
    /// stay float32 and casts are saved, too. For a GPU it is assumed that operands of matrix products in bfloat16 have half the
    /// size, and that the outer layer's attention saves no weights.
    pub activations: u64,
    /// Micro-batches that are read ahead.
    pub batches: u64,
    /// The copy of this rank's part of a checkpoint while it is written.
    pub snapshot: u64,
}

impl MemoryEstimate {
    /// Estimates the memory of one of `world_size` ranks that computes `batch` on `processor`, in a process that already uses
    /// `process` bytes.
    pub(crate) fn of_rank(
        config: &TrainConfig,
        processor: Processor,
        world_size: usize,
        batch: BatchShare,
        process: u64,
    ) -> Self {
        let model = &config.model;
        let parameters = model.parameter_count() as f64;
        let part = parameters / world_size as f64;
        let half = config.precision == Precision::Bf16;
        let micro = batch.micro as f64;
        // One latent.
        let sample = (model.sequence_length() * model.vae.channels) as f64 * FULL;
        let (operand_bytes, first_use) = match processor {
            Processor::Cpu => (FULL, FIRST_USE),
            Processor::Gpu => (if half { HALF } else { FULL }, FIRST_USE_OF_GPU),
        };
        let saved = saved_elements(model, model.mean_masked(), processor);
        Self {
            process: process + first_use,
            weights: bytes(FULL * parameters),
            gradients: bytes(FULL * parameters),
            optimizer_and_ema: bytes(3.0 * FULL * part),
            half_weights: bytes(if half { HALF * parameters } else { 0.0 }),
            activations: bytes(OVERHEAD * micro * (FULL * saved.full + operand_bytes * saved.operands)),
            batches: bytes(sample * micro * (config.data.look_ahead + 1) as f64),
            snapshot: bytes(4.0 * FULL * part),
        }
    }

    /// Returns the sum of all parts.
    pub(crate) fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Returns the sum without the copy of a checkpoint, which is not made if memory has no room for it.
    pub(crate) fn while_training(&self) -> u64 {
        self.total() - self.snapshot
    }

    /// Returns the part in GPU memory if the rank computes on a GPU.
    pub(crate) fn on_gpu(&self) -> u64 {
        self.weights + self.gradients + self.optimizer_and_ema + self.half_weights + self.activations
    }

    /// Returns the part in host memory if the rank computes on a GPU, including the copy of a checkpoint.
    pub(crate) fn on_host(&self) -> u64 {
        self.total() - self.on_gpu()
    }

    /// Returns every part with its name.
    pub(crate) fn parts(&self) -> [(&'static str, u64); 8] {
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

/// Returns the largest micro-batch of at most `max` images that `fits`, or `None` if none does. Every smaller micro-batch must
/// fit, too.
pub(crate) fn largest_micro(max: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut good, mut bad) = (0, max + 1);
    while good + 1 < bad {
        let middle = good + (bad - good) / 2;
        if fits(middle) { good = middle } else { bad = middle }
    }
    (good > 0).then_some(good)
}

fn bytes(count: f64) -> u64 {
    count as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn arinar_b() -> TrainConfig {
        let text = include_str!("../../../../configs/arinar_b.yaml");
        crate::config::parse(text, "arinar_b.yaml", &[]).expect("a shipped configuration")
    }

    #[test]
    fn ranks_share_only_the_optimizer() {
        let config = arinar_b();
        let batch = BatchShare { micro: 4, accumulation: 16 };
        let of_world = |world| MemoryEstimate::of_rank(&config, Processor::Cpu, world, batch, 0);
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

    /// Returns the estimate for a rank with micro-batches of four images.
    fn in_precision(precision: Precision, processor: Processor, dropout: f64) -> MemoryEstimate {
        let mut config = TrainConfig { precision, ..arinar_b() };
        config.model.outer.dropout = dropout;
        MemoryEstimate::of_rank(&config, processor, 1, BatchShare { micro: 4, accumulation: 1 }, 0)
    }

    #[test]
    fn bf16_adds_a_copy_of_the_weights() {
        let of = |precision| in_precision(precision, Processor::Cpu, 0.1);
        let (full, half) = (of(Precision::Fp32), of(Precision::Bf16));
        assert_eq!(half.half_weights, full.weights / 2);
        assert_eq!(half.activations, full.activations);
    }

    #[test]
    fn a_gpu_saves_less_and_the_host_holds_the_rest() {
        use Precision::{Bf16, Fp32};
        use Processor::{Cpu, Gpu};
        // Without dropout, a GPU saves slightly more in float32, because the head's attention is not fused there.
        let ratio = in_precision(Fp32, Gpu, 0.0).activations as f64 / in_precision(Fp32, Cpu, 0.0).activations as f64;
        assert!((1.0..1.1).contains(&ratio), "{ratio}");
        let of = |precision, processor| in_precision(precision, processor, 0.1);
        assert!(of(Fp32, Gpu).activations < of(Fp32, Cpu).activations);
        let share = of(Bf16, Gpu).activations as f64 / of(Fp32, Gpu).activations as f64;
        assert!((0.55..0.75).contains(&share), "{share}");
        let memory = of(Bf16, Gpu);
        assert_eq!(memory.on_gpu() + memory.on_host(), memory.total());
        assert_eq!(memory.on_host(), memory.process + memory.batches + memory.snapshot);
        assert_eq!((Processor::from(Device::Cuda(1)), Processor::from(Device::Cpu)), (Gpu, Cpu));
    }
}
