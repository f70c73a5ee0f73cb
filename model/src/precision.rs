//! The number format of matrix products.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// The number format of the matrix products in forward and backward passes.
///
/// In every precision, parameters and their gradients are float32, and so are residual streams, layer norms, the first
/// and last layers, mixtures and the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32.
    #[default]
    Fp32,
    /// bfloat16 with accumulation in float32.
    Bf16,
}

impl Precision {
    /// Returns the name used in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        }
    }

    /// Returns true if `device` supports this format in hardware. Without it, products are much slower than in float32.
    pub fn is_native(self, device: Device) -> bool {
        match (self, device) {
            (Self::Bf16, Device::Cpu) => cpu_has_bf16(),
            _ => true,
        }
    }

    /// Returns the kind of the operands and the result of a layer whose parameters have kind `parameters`.
    pub(crate) fn kind(self, parameters: Kind) -> Kind {
        match self {
            Self::Fp32 => parameters,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// Casts an operand of a product. A tensor of the right kind is not copied.
    pub(crate) fn cast(self, tensor: &Tensor) -> Tensor {
        tensor.to_kind(self.kind(tensor.kind()))
    }
}

/// Returns true if the processor has instructions for bfloat16 products.
fn cpu_has_bf16() -> bool {
    // Processors with AMX also have AVX-512 BF16.
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}
