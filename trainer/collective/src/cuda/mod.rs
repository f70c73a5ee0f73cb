//! The few CUDA calls that tch does not have: streams beside libtorch's, ordered against it by events; pinned host
//! memory; what a GPU is called and where it sits.
//!
//! libtorch computes on the legacy default stream of its device (this program never chooses another), so that stream
//! stands for "all that libtorch has been asked to do". Contexts here are the device's primary one, which libtorch
//! uses, too.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use arinar_model::device;
use cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DriverError, PinnedHostSlice,
    result::{self, memcpy_dtoh_async},
    sys,
};
use tch::{Device, Kind, Tensor};

/// Lets ranks hand host memory to CUDA and NCCL. For tests, whose stand-ins for both work on host memory; the real
/// libraries would read wild addresses.
pub const HOST_STAND_IN: &str = "ARINAR_NCCL_STAND_IN";

/// Bytes of each of the two pinned buffers: large enough for the bus's full speed, small beside a model.
const STAGE: usize = 32 << 20;
/// Looks at an event before the first sleep, and the sleep between two looks after that.
const SPINS: u32 = 200;
const NAP: Duration = Duration::from_micros(20);

/// A CUDA call that failed.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The driver refused, or reports an earlier failure.
    #[error("CUDA: {0}")]
    Driver(#[from] DriverError),
    /// There is no driver.
    #[error("libcuda.so is not found: this machine has no NVIDIA driver")]
    NoDriver,
    /// Only contiguous float32 tensors of the copier's own GPU are copied as they lie.
    #[error("a {0:?} tensor on {1:?} cannot be copied as it lies: it must be contiguous float32 of this GPU")]
    Layout(Kind, Device),
}

/// Errors unless the driver library can be loaded; cudarc would panic.
fn require_driver() -> Result<(), CudaError> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: loads the driver library, whose initialisers only prepare itself, and unloads it; asked once, so that it is
    // never unloaded while cudarc, which then loads it for good, uses it.
    let present = *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() });
    if present { Ok(()) } else { Err(CudaError::NoDriver) }
}

/// A GPU as this process sees it.
#[derive(Clone, Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
}

impl Gpu {
    /// Opens GPU number `ordinal` (of those that CUDA shows to this process) and makes it the calling thread's.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        require_driver()?;
        Ok(Self { context: CudaContext::new(ordinal)? })
    }

    /// Its name, as the driver has it.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn name(&self) -> Result<String, CudaError> {
        Ok(self.context.name()?)
    }

    /// Bytes of its memory that are free, and all that it has. They are asked for on its primary context, which takes
    /// some itself.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (free, all) = self.context.mem_get_info()?;
        Ok((free as u64, all as u64))
    }

    /// Makes it the calling thread's, for C libraries that take the current one.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn make_current(&self) -> Result<(), CudaError> {
        Ok(self.context.bind_to_thread()?)
    }

    /// A stream beside libtorch's.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn stream(&self) -> Result<SideStream, CudaError> {
        Ok(SideStream { libtorch: self.context.default_stream(), own: self.context.new_stream()? })
    }
}

/// Where a GPU sits on the bus, as the kernel writes it ("0000:3b:00.0"); `None` where that cannot be found out. Makes
/// no context, so that it can be asked before threads start.
pub fn bus_address(ordinal: usize) -> Option<String> {
    require_driver().ok()?;
    result::init().ok()?;
    let device = result::device::get(i32::try_from(ordinal).ok()?).ok()?;
    let mut text = [0_u8; 32];
    // SAFETY: the driver writes at most the given number of bytes, a final zero among them, into `text`.
    let asked = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, device) };
    asked.result().ok()?;
    let address = std::ffi::CStr::from_bytes_until_nul(&text).ok()?;
    Some(address.to_str().ok()?.to_lowercase())
}

/// Which GPU that is, among all GPUs of all machines: two machines may have one name, as containers do, but not have been
/// started as one.
pub fn place(ordinal: usize) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let start = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let start = start.split('-').next().unwrap_or_default().trim_end();
    let address = bus_address(ordinal).unwrap_or_else(|| ordinal.to_string());
    format!("GPU {address} of {host} ({start})")
}

/// Version of the driver as "13.0"; `None` without one.
pub fn driver_version() -> Option<String> {
    require_driver().ok()?;
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().ok()?;
    Some(dotted(version))
}

/// CUDA writes 13.0 as 13000.
fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Version of the CUDA runtime that libtorch brings, as "13.0"; `None` where its CUDA part is not loaded.
pub fn runtime_version() -> Option<String> {
    // tch would panic where it is not loaded.
    device::has_libtorch_cuda().then(|| dotted(tch::utils::version_cudart() as i32))
}

/// A stream on which work goes on beside libtorch's.
#[derive(Debug)]
pub struct SideStream {
    libtorch: Arc<CudaStream>,
    own: Arc<CudaStream>,
}

impl SideStream {
    /// What is put on this stream from now on waits for all that libtorch has been asked to do so far.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn after_libtorch(&self) -> Result<(), CudaError> {
        Ok(self.own.join(&self.libtorch)?)
    }

    /// What libtorch is asked to do from now on waits for all that has been put on this stream so far. The event comes
    /// when that is done.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn before_libtorch(&self) -> Result<CudaEvent, CudaError> {
        let done = self.own.record_event(None)?;
        self.libtorch.wait(&done)?;
        Ok(done)
    }

    /// For C libraries that put work on it.
    pub fn raw(&self) -> sys::CUstream {
        self.own.cu_stream()
    }
}

/// Waits for an event; `check` is asked all along whether there is still hope.
///
/// # Errors
/// What `check` says, or what CUDA reports.
pub fn wait<E: From<CudaError>>(done: &CudaEvent, mut check: impl FnMut() -> Result<(), E>) -> Result<(), E> {
    let mut looks = 0;
    while !done.try_is_complete().map_err(CudaError::from)? {
        check()?;
        pause(&mut looks);
    }
    Ok(())
}

/// Between two looks at something that comes soon: first the processor is only offered to others.
pub fn pause(looks: &mut u32) {
    if *looks < SPINS {
        *looks += 1;
        std::thread::yield_now();
    } else {
        std::thread::sleep(NAP);
    }
}

/// Copies tensors to host memory while libtorch computes: through pinned memory, on a stream of its own.
pub struct HostCopier {
    stream: SideStream,
    stages: [Stage; 2],
}

/// A pinned buffer, and when what is copied into it has arrived.
struct Stage {
    pinned: PinnedHostSlice<u8>,
    arrived: Option<CudaEvent>,
}

impl HostCopier {
    /// Takes 64 MiB of pinned memory.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let stage = || -> Result<Stage, CudaError> {
            // SAFETY: its contents are not read before a copy has filled what is read. No flags: the processor reads
            // it, which write-combined memory is slow at.
            let pinned = unsafe { gpu.context.alloc_pinned_with_flags(STAGE, 0)? };
            Ok(Stage { pinned, arrived: None })
        };
        Ok(Self { stream: gpu.stream()?, stages: [stage()?, stage()?] })
    }

    /// Copies a contiguous float32 tensor of this GPU into `out`, which has its size. It sees all that libtorch had
    /// been asked to do when this was called; the caller keeps the tensor unchanged until it returns.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn copy(&mut self, tensor: &Tensor, out: &mut [u8]) -> Result<(), CudaError> {
        let bytes = tensor.numel() * size_of::<f32>();
        let context = self.stream.own.context();
        let here = match tensor.device() {
            Device::Cuda(ordinal) => ordinal == context.ordinal(),
            // The stand-in's memory is the host's.
            _ => std::env::var_os(HOST_STAND_IN).is_some(),
        };
        if !here || tensor.kind() != Kind::Float || !tensor.is_contiguous() || bytes != out.len() {
            return Err(CudaError::Layout(tensor.kind(), tensor.device()));
        }
        context.bind_to_thread()?;
        self.stream.after_libtorch()?;
        let copied = self.copy_in_stages(tensor.data_ptr() as sys::CUdeviceptr, out);
        // Also after an error nothing may be under way into the buffers.
        let settled = self.stream.own.synchronize().map_err(CudaError::from);
        copied.and(settled)
    }

    /// One buffer fills while the other is emptied.
    fn copy_in_stages(&mut self, source: sys::CUdeviceptr, out: &mut [u8]) -> Result<(), CudaError> {
        let (bytes, pieces) = (out.len(), out.len().div_ceil(STAGE));
        let piece = |index: usize| index * STAGE..((index + 1) * STAGE).min(bytes);
        for index in 0..=pieces {
            if index < pieces {
                let range = piece(index);
                let stage = &mut self.stages[index % 2];
                let target = &mut stage.pinned.as_mut_slice()?[..range.len()];
                // SAFETY: `source..source + out.len()` is the tensor's memory, which the caller keeps; the pinned
                // buffer lives in `self` and is not touched before `arrived`, and `copy` waits for the stream before
                // it returns, however it does.
                unsafe { memcpy_dtoh_async(target, source + range.start as u64, self.stream.raw())? };
                stage.arrived = Some(self.stream.own.record_event(None)?);
            }
            if let Some(before) = index.checked_sub(1) {
                let range = piece(before);
                let stage = &mut self.stages[before % 2];
                if let Some(arrived) = stage.arrived.take() {
                    arrived.synchronize()?;
                }
                let length = range.len();
                out[range].copy_from_slice(&stage.pinned.as_slice()?[..length]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_people_do() {
        assert_eq!(dotted(13_000), "13.0");
        assert_eq!(dotted(12_080), "12.8");
    }

    #[test]
    fn a_machine_without_a_driver_says_so() {
        if driver_version().is_none() {
            assert!(matches!(Gpu::open(0), Err(CudaError::NoDriver)));
            assert_eq!(bus_address(0), None);
        }
    }
}
