//! Estimates for GPUs from their data sheets. docs/gpu.md has measurements.

use arinar_model::precision::Precision;
use serde::Serialize;

/// The share of a data sheet's peak rate that training is assumed to reach. It is the utilisation of the paper's run, which a
/// test derives from its published time. This program has reached 0.11 on an H100 in bf16 (docs/gpu.md).
pub(crate) const UTILISATION: f64 = 0.25;

/// A GPU model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct GpuModel {
    pub name: &'static str,
    /// Memory in 10^9 bytes.
    pub gigabytes: f64,
    /// Rate of dense bfloat16 matrix products in 10^12 operations per second.
    pub bf16: f64,
    /// Rate of float32 in 10^12 operations per second. By default, libtorch does not round products to TF32.
    pub fp32: f64,
}

/// GPU models with the peak rates of their data sheets, without sparsity.
pub(crate) const GPU_MODELS: [GpuModel; 11] = [
    gpu("A100-40G", 40.0, 312.0, 19.5),
    gpu("A100-80G", 80.0, 312.0, 19.5),
    gpu("H100-80G PCIe", 80.0, 756.0, 51.0),
    gpu("H100-80G SXM", 80.0, 989.0, 67.0),
    gpu("H200", 141.0, 989.0, 67.0),
    gpu("B200", 180.0, 2250.0, 75.0),
    gpu("L4", 24.0, 121.0, 30.3),
    gpu("L40S", 48.0, 362.0, 91.6),
    gpu("RTX A6000", 48.0, 154.8, 38.7),
    gpu("RTX 4090", 24.0, 165.2, 82.6),
    gpu("RTX 5090", 32.0, 209.5, 104.8),
];

const fn gpu(name: &'static str, gigabytes: f64, bf16: f64, fp32: f64) -> GpuModel {
    GpuModel { name, gigabytes, bf16, fp32 }
}

/// The forecast for a run on several GPUs of one model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct GpuForecast {
    /// Name of the GPU model.
    pub gpu: &'static str,
    /// Images per second on all GPUs together.
    pub images_per_second: f64,
    /// Seconds of all steps.
    pub seconds: f64,
    /// The estimated memory of a rank fits into a GPU.
    pub fits: bool,
    /// Bytes of the checkpoints written during the run.
    pub checkpoint_bytes: u64,
}

impl GpuModel {
    fn peak_rate(&self, precision: Precision) -> f64 {
        let tera = match precision {
            Precision::Fp32 => self.fp32,
            Precision::Bf16 => self.bf16,
        };
        tera * 1e12
    }

    /// Returns the images per second on `count` GPUs if an image takes `flops` operations.
    pub(crate) fn images_per_second(&self, precision: Precision, count: usize, flops: f64) -> f64 {
        self.peak_rate(precision) * UTILISATION * count as f64 / flops
    }

    /// Returns true if its memory holds this number of bytes.
    pub(crate) fn holds(&self, bytes: u64) -> bool {
        bytes as f64 <= self.gigabytes * 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arinar_model::config::ModelConfig;

    /// Length of the paper's run in epochs.
    const PUBLISHED_EPOCHS: f64 = 400.0;
    /// Number of images in its dataset, the training set of ImageNet.
    const PUBLISHED_SAMPLES: f64 = 1_281_167.0;
    /// Number of its GPUs.
    const PUBLISHED_GPUS: f64 = 4.0;
    /// Its duration in seconds: eight days.
    const PUBLISHED_SECONDS: f64 = 8.0 * 86_400.0;

    /// Returns the share of the peak rate of four A100 that the paper's run reached if an image takes `flops` operations.
    fn published_utilisation(flops: f64) -> f64 {
        flops * PUBLISHED_EPOCHS * PUBLISHED_SAMPLES
            / (GPU_MODELS[1].peak_rate(Precision::Bf16) * PUBLISHED_GPUS * PUBLISHED_SECONDS)
    }

    #[test]
    fn the_assumed_utilisation_is_that_of_the_paper() {
        let reached = published_utilisation(ModelConfig::arinar_b().training_flops().total());
        assert!((reached / UTILISATION - 1.0).abs() < 0.1, "{reached}");
    }

    #[test]
    fn four_a100_take_about_eight_days() {
        let flops = ModelConfig::arinar_b().training_flops().total();
        let pace = GPU_MODELS[1].images_per_second(Precision::Bf16, 4, flops);
        let days = PUBLISHED_EPOCHS * PUBLISHED_SAMPLES / pace / 86_400.0;
        assert!((7.2..8.8).contains(&days), "{days}");
        assert!(GPU_MODELS[1].holds(79_000_000_000) && !GPU_MODELS[0].holds(41_000_000_000));
    }

    #[test]
    fn bf16_is_faster_on_every_gpu() {
        for gpu in GPU_MODELS {
            assert!((1.9..31.0).contains(&(gpu.bf16 / gpu.fp32)), "{}", gpu.name);
        }
    }
}
