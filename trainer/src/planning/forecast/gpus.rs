//! GPUs by their data sheets. An estimate: no GPU has run this.

use serde::Serialize;

use arinar_model::precision::Precision;

/// The share of a data sheet's rate that training is assumed to reach. It is the
/// utilisation of the paper's own run, which a test derives from its published time.
pub const UTILISATION: f64 = 0.25;

/// A kind of GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Name.
    pub name: &'static str,
    /// Memory, 10^9 bytes.
    pub gigabytes: f64,
    /// Dense bfloat16 matrix products, 10^12 operations a second.
    pub bf16: f64,
    /// float32, 10^12 operations a second: libtorch does not round products to TF32 unless it is asked to.
    pub fp32: f64,
}

/// Peak rates by the vendor's data sheets, without sparsity.
pub const GPUS: [Gpu; 11] = [
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

const fn gpu(name: &'static str, gigabytes: f64, bf16: f64, fp32: f64) -> Gpu {
    Gpu { name, gigabytes, bf16, fp32 }
}

/// What a run would take on some GPUs of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OnGpus {
    /// Kind.
    pub gpu: &'static str,
    /// Pictures a second on all of them.
    pub images_per_second: f64,
    /// Seconds for all steps.
    pub seconds: f64,
    /// Whether a rank's estimated memory is there.
    pub fits: bool,
    /// Bytes of checkpoints written meanwhile.
    pub checkpoint_bytes: u64,
}

impl Gpu {
    fn rate(&self, precision: Precision) -> f64 {
        let tera = match precision {
            Precision::Fp32 => self.fp32,
            Precision::Bf16 => self.bf16,
        };
        tera * 1e12
    }

    /// Pictures a second on `count` of them, if a picture takes `flops` operations.
    pub fn images_per_second(&self, precision: Precision, count: usize, flops: f64) -> f64 {
        self.rate(precision) * UTILISATION * count as f64 / flops
    }

    /// Whether a rank has its memory there.
    pub fn fits(&self, bytes: u64) -> bool {
        bytes as f64 <= self.gigabytes * 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arinar_model::config::ModelConfig;

    /// Length of the run that the paper reports, in epochs.
    const PUBLISHED_EPOCHS: f64 = 400.0;
    /// Its dataset, the training set of ImageNet, in pictures.
    const PUBLISHED_SAMPLES: f64 = 1_281_167.0;
    /// Its GPUs.
    const PUBLISHED_GPUS: f64 = 4.0;
    /// Its time in seconds: eight days.
    const PUBLISHED_SECONDS: f64 = 8.0 * 86_400.0;

    /// Which share of the rate of its four A100s the paper's run of eight days comes to, if a picture takes `flops`.
    fn published_utilisation(flops: f64) -> f64 {
        flops * PUBLISHED_EPOCHS * PUBLISHED_SAMPLES
            / (GPUS[1].rate(Precision::Bf16) * PUBLISHED_GPUS * PUBLISHED_SECONDS)
    }

    #[test]
    fn what_is_assumed_is_what_the_paper_reached() {
        let reached = published_utilisation(ModelConfig::arinar_b().training_flops().total());
        assert!((reached / UTILISATION - 1.0).abs() < 0.1, "{reached}");
    }

    #[test]
    fn four_a100_take_about_eight_days() {
        let flops = ModelConfig::arinar_b().training_flops().total();
        let pace = GPUS[1].images_per_second(Precision::Bf16, 4, flops);
        let days = PUBLISHED_EPOCHS * PUBLISHED_SAMPLES / pace / 86_400.0;
        assert!((7.2..8.8).contains(&days), "{days}");
        assert!(GPUS[1].fits(79_000_000_000) && !GPUS[0].fits(41_000_000_000));
    }

    #[test]
    fn bf16_is_faster_everywhere() {
        for gpu in GPUS {
            assert!((1.9..31.0).contains(&(gpu.bf16 / gpu.fp32)), "{}", gpu.name);
        }
    }
}
