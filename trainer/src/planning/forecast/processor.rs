//! The processor that a rank computes on.

use serde::Serialize;
use tch::Device;

/// The processor that a rank computes on. Its memory holds the model, gradients, the optimizer's state, and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Processor {
    /// The CPU, which uses host memory.
    Cpu,
    /// A GPU with its own memory.
    Gpu,
}

impl From<Device> for Processor {
    fn from(device: Device) -> Self {
        if matches!(device, Device::Cuda(_)) { Self::Gpu } else { Self::Cpu }
    }
}
