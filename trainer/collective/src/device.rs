//! The device that a process computes on. libtorch's CUDA part is loaded at run time, where a GPU driver is: linked, it
//! would be needed on every machine.

use std::{fmt, str::FromStr, sync::OnceLock};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use serde::{Deserialize, Serialize};
use tch::Device;
use thiserror::Error;

/// NVIDIA's driver library, which is there exactly where its driver is.
const DRIVER: &str = "libcuda.so.1";
/// libtorch's kernels for GPUs. The programs' rpath names its folder.
const LIBTORCH_CUDA: &str = "libtorch_cuda.so";
/// A folder for each GPU that the kernel's driver drives.
const KERNEL_DRIVER: &str = "/proc/driver/nvidia/gpus";
/// The GPUs that CUDA shows to a process; empty or -1 for none.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// How loading it went.
static LOADED: OnceLock<Result<(), DeviceError>> = OnceLock::new();

/// Why the device asked for cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// A driver without libtorch's part for it: training on the CPU is not what was meant.
    #[error(
        "this machine has an NVIDIA driver, but {LIBTORCH_CUDA} cannot be loaded ({reason}); run ops/bootstrap.sh --cuda, \
         or ask for the device cpu"
    )]
    LibtorchCuda {
        /// What the dynamic linker says.
        reason: String,
    },
    /// The machine has GPUs and libtorch finds none of them: training on the CPU is not what was meant.
    #[error(
        "this machine has an NVIDIA GPU, but libtorch cannot use it: is the driver too old for CUDA 13 (nvidia-smi shows \
         its version), or CUDA_VISIBLE_DEVICES wrong? Mend that, or ask for the device cpu"
    )]
    Unusable,
    /// A GPU is asked for and there is none.
    #[error("no GPU is found on this machine; check the driver with nvidia-smi, or ask for the device cpu")]
    NoGpu,
}

/// What to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// GPUs where there are any, else the CPU.
    #[default]
    Auto,
    /// The CPU, also where there are GPUs.
    Cpu,
    /// GPUs; an error where there are none.
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
    /// The device of process `local_rank` of this machine: the GPU of that number. Where it sees fewer (Slurm may show
    /// each process one of its own) they are counted round; that no two share one is for those to check who start them.
    ///
    /// # Errors
    /// [`DeviceError`].
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

/// GPUs that libtorch can use, its CUDA part loaded. None without a driver.
///
/// # Errors
/// [`DeviceError::LibtorchCuda`].
pub fn gpus() -> Result<usize, DeviceError> {
    if has_driver() {
        load_libtorch_cuda()?;
    }
    Ok(usize::try_from(tch::Cuda::device_count()).unwrap_or(0))
}

/// True where the kernel's driver has GPUs that nobody hides from this process.
fn has_hidden_gpus() -> bool {
    let hidden = std::env::var(VISIBLE).is_ok_and(|shown| shown.is_empty() || shown.starts_with("-1"));
    !hidden && std::fs::read_dir(KERNEL_DRIVER).is_ok_and(|mut gpus| gpus.next().is_some())
}

/// True where NVIDIA's driver is installed.
pub fn has_driver() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| load(DRIVER).is_ok())
}

/// Loads libtorch's CUDA part, driver or not; it then stays loaded.
///
/// # Errors
/// [`DeviceError::LibtorchCuda`].
pub fn load_libtorch_cuda() -> Result<(), DeviceError> {
    LOADED.get_or_init(|| load(LIBTORCH_CUDA).map_err(|reason| DeviceError::LibtorchCuda { reason })).clone()
}

/// True once libtorch's CUDA part is loaded.
pub fn has_libtorch_cuda() -> bool {
    matches!(LOADED.get(), Some(Ok(())))
}

fn load(name: &str) -> Result<(), String> {
    // SAFETY: loading runs the library's initialisers. Those of the driver library only prepare itself; libtorch_cuda's
    // register its kernels with the libtorch that this process is linked to, which is of the same build, and do so
    // whether they run at the start of the program (as in PyTorch) or now. Global, because libtorch looks some of its
    // symbols up by name.
    let loaded = unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_GLOBAL) };
    // Never unloaded: libtorch keeps pointers into it.
    loaded.map(std::mem::forget).map_err(|error| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_a_gpu_of_its_own_where_there_are_enough() {
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
    fn choices_are_written_as_they_are_read() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
            assert_eq!(serde_json::to_value(choice).unwrap(), choice.to_string());
        }
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }
}
