//! Selection of the device that a process computes on. libtorch's CUDA libraries are loaded at run time if the machine has
//! a GPU driver; if they were linked, every machine would need them.

use std::{fmt, str::FromStr, sync::OnceLock};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use serde::{Deserialize, Serialize};
use tch::Device;
use thiserror::Error;

/// NVIDIA's driver library, which is present exactly if the driver is installed.
const DRIVER: &str = "libcuda.so.1";
/// libtorch's CUDA kernels. The rpath of the programs contains its folder.
const LIBTORCH_CUDA: &str = "libtorch_cuda.so";
/// Holds one folder for each GPU that the kernel driver manages.
const KERNEL_DRIVER: &str = "/proc/driver/nvidia/gpus";
/// The environment variable that lists the GPUs visible to a process; empty or -1 for none.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// The result of loading [`LIBTORCH_CUDA`].
static LOADED: OnceLock<Result<(), DeviceError>> = OnceLock::new();

/// The requested device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// A driver is installed but libtorch's CUDA libraries cannot be loaded. Falling back to the CPU would hide that.
    #[error(
        "this machine has an NVIDIA driver, but {LIBTORCH_CUDA} cannot be loaded ({reason}); run ops/bootstrap.sh --cuda, \
         or ask for the device cpu"
    )]
    LibtorchCuda {
        /// Error of the dynamic linker.
        reason: String,
    },
    /// The machine has GPUs but libtorch finds none of them. Falling back to the CPU would hide that.
    #[error(
        "this machine has an NVIDIA GPU, but libtorch cannot use it: is the driver too old for CUDA 13 (nvidia-smi shows \
         its version), or CUDA_VISIBLE_DEVICES wrong? Mend that, or ask for the device cpu"
    )]
    Unusable,
    /// A GPU is requested and there is none.
    #[error("no GPU is found on this machine; check the driver with nvidia-smi, or ask for the device cpu")]
    NoGpu,
}

/// The device requested by the user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// A GPU if there is one, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU, even if there are GPUs.
    Cpu,
    /// A GPU; an error if there is none.
    Cuda,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            _ => Err("it is auto, cpu or cuda".to_owned()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

impl DeviceChoice {
    /// Returns the device of local rank `local_rank`: the GPU with that ordinal, modulo the number of visible GPUs, since
    /// Slurm may show each process only its own. Whether two ranks share a GPU is checked when they connect.
    ///
    /// # Errors
    /// Returns an error if the requested device is not available.
    pub fn device(self, local_rank: usize) -> Result<Device, DeviceError> {
        let gpus = if self == Self::Cpu { 0 } else { gpus()? };
        self.among(gpus, has_hidden_gpus, local_rank)
    }

    fn among(self, gpus: usize, has_hidden: impl Fn() -> bool, local_rank: usize) -> Result<Device, DeviceError> {
        match (self, gpus) {
            (Self::Auto, 0) if has_hidden() => Err(DeviceError::Unusable),
            (Self::Cpu, _) | (Self::Auto, 0) => Ok(Device::Cpu),
            (Self::Cuda, 0) => Err(DeviceError::NoGpu),
            _ => Ok(Device::Cuda(local_rank % gpus)),
        }
    }
}

/// Loads libtorch's CUDA libraries if there is a driver, and returns the number of GPUs that libtorch can use.
///
/// # Errors
/// Returns [`DeviceError::LibtorchCuda`] if there is a driver and the libraries cannot be loaded.
pub fn gpus() -> Result<usize, DeviceError> {
    if has_driver() {
        load_libtorch_cuda()?;
    }
    Ok(usize::try_from(tch::Cuda::device_count()).unwrap_or(0))
}

/// Returns true if the kernel driver has GPUs that are not hidden from this process by [`VISIBLE`].
fn has_hidden_gpus() -> bool {
    let hidden = std::env::var(VISIBLE).is_ok_and(|shown| shown.is_empty() || shown.starts_with("-1"));
    !hidden && std::fs::read_dir(KERNEL_DRIVER).is_ok_and(|mut gpus| gpus.next().is_some())
}

/// Returns true if NVIDIA's driver is installed.
pub fn has_driver() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| load(DRIVER).is_ok())
}

/// Loads libtorch's CUDA libraries, whether or not there is a driver. They stay loaded.
///
/// # Errors
/// Returns [`DeviceError::LibtorchCuda`] if they cannot be loaded.
pub fn load_libtorch_cuda() -> Result<(), DeviceError> {
    LOADED.get_or_init(|| load(LIBTORCH_CUDA).map_err(|reason| DeviceError::LibtorchCuda { reason })).clone()
}

/// Returns true if libtorch's CUDA libraries are loaded.
pub fn has_libtorch_cuda() -> bool {
    matches!(LOADED.get(), Some(Ok(())))
}

fn load(name: &str) -> Result<(), String> {
    // SAFETY: loading runs the initializers of the library. Those of the driver library only initialize the library itself.
    // Those of libtorch_cuda register its kernels with the libtorch that this process is linked to, which is of the same
    // build, and may run at program start (as in PyTorch) or later. RTLD_GLOBAL, because libtorch looks up some symbols by
    // name.
    let loaded = unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_GLOBAL) };
    // Never unloaded, because libtorch keeps pointers into it.
    loaded.map(std::mem::forget).map_err(|error| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_process_gets_its_own_gpu_if_there_are_enough() {
        use DeviceChoice::{Auto, Cpu, Cuda};
        assert_eq!(Auto.among(0, || true, 0), Err(DeviceError::Unusable));
        assert_eq!(Cpu.among(0, || true, 0), Ok(Device::Cpu));
        for (choice, gpus, local_rank, expected) in [
            (Auto, 0, 3, Ok(Device::Cpu)),
            (Auto, 4, 3, Ok(Device::Cuda(3))),
            (Auto, 1, 3, Ok(Device::Cuda(0))),
            (Cpu, 4, 3, Ok(Device::Cpu)),
            (Cuda, 4, 0, Ok(Device::Cuda(0))),
            (Cuda, 0, 0, Err(DeviceError::NoGpu)),
        ] {
            assert_eq!(choice.among(gpus, || false, local_rank), expected, "{choice} {gpus} {local_rank}");
        }
    }

    #[test]
    fn choices_are_formatted_as_they_are_parsed() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
            assert_eq!(serde_json::to_value(choice).unwrap(), choice.to_string());
        }
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }
}
