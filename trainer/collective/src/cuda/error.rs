//! Errors of CUDA calls.

use std::sync::OnceLock;

use cudarc::driver::{DriverError, sys};
use tch::{Device, Kind};

/// A CUDA call that failed.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The driver rejected the call, or reports an earlier failure.
    #[error("CUDA: {0}")]
    Driver(#[from] DriverError),
    /// The driver is not installed.
    #[error("libcuda.so is not found: this machine has no NVIDIA driver")]
    NoDriver,
    /// The tensor cannot be copied: only contiguous float32 tensors on the copier's GPU can.
    #[error("a {0:?} tensor on {1:?} cannot be copied: it must be contiguous float32 on this GPU")]
    Layout(Kind, Device),
}

/// Returns an error unless the driver library can be loaded. Without this check, cudarc would panic.
pub(super) fn require_driver() -> Result<(), CudaError> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: loads the driver library, whose initializers only initialize the library itself, and unloads it. Checked only
    // once, so that it is never unloaded while cudarc, which then loads it permanently, uses it.
    let present = *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() });
    if present { Ok(()) } else { Err(CudaError::NoDriver) }
}
