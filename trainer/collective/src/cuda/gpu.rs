//! A GPU: its name, address and memory.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use super::{
    error::{CudaError, require_driver},
    stream::SideStream,
};

/// A GPU that is visible to this process.
#[derive(Clone, Debug)]
pub struct Gpu {
    pub(super) context: Arc<CudaContext>,
}

impl Gpu {
    /// Opens the GPU with the given ordinal, counted over the GPUs visible to this process, and makes it current for the
    /// calling thread.
    ///
    /// # Errors
    /// Returns an error if there is no driver or no such GPU.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        require_driver()?;
        Ok(Self { context: CudaContext::new(ordinal)? })
    }

    /// Returns the name reported by the driver.
    ///
    /// # Errors
    /// Returns an error if the driver rejects the call.
    pub fn name(&self) -> Result<String, CudaError> {
        Ok(self.context.name()?)
    }

    /// Returns the free and the total memory of the GPU in bytes. The primary context, which is created for the query,
    /// itself takes some.
    ///
    /// # Errors
    /// Returns an error if the driver rejects the call.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (free, total) = self.context.mem_get_info()?;
        Ok((free as u64, total as u64))
    }

    /// Makes the GPU current for the calling thread, for C libraries that use the current GPU.
    ///
    /// # Errors
    /// Returns an error if the driver rejects the call.
    pub(crate) fn make_current(&self) -> Result<(), CudaError> {
        Ok(self.context.bind_to_thread()?)
    }

    /// Creates a stream that runs concurrently with libtorch's.
    ///
    /// # Errors
    /// Returns an error if the driver rejects the call.
    pub fn stream(&self) -> Result<SideStream, CudaError> {
        Ok(SideStream::new(self.context.default_stream(), self.context.new_stream()?))
    }
}

/// Returns the PCI address of a GPU in the kernel's format, for example "0000:3b:00.0"; `None` if unknown. Creates no
/// context, so that it can be called before any thread is started.
pub fn bus_address(ordinal: usize) -> Option<String> {
    require_driver().ok()?;
    result::init().ok()?;
    let device = result::device::get(i32::try_from(ordinal).ok()?).ok()?;
    let mut text = [0_u8; 32];
    // SAFETY: the driver writes at most the given number of bytes into `text`, including a terminating zero.
    let status = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, device) };
    status.result().ok()?;
    let address = std::ffi::CStr::from_bytes_until_nul(&text).ok()?;
    Some(address.to_str().ok()?.to_lowercase())
}

/// Returns a description that identifies a GPU among all GPUs of all hosts. It includes the boot id, because two hosts may
/// have the same name, as containers do.
pub fn description(ordinal: usize) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot_id = boot_id.split('-').next().unwrap_or_default().trim_end();
    let address = bus_address(ordinal).unwrap_or_else(|| ordinal.to_string());
    format!("GPU {address} of {host} ({boot_id})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::driver_version;

    #[test]
    fn a_machine_without_a_driver_has_no_gpus() {
        if driver_version().is_none() {
            assert!(matches!(Gpu::open(0), Err(CudaError::NoDriver)));
            assert_eq!(bus_address(0), None);
        }
    }
}
