//! Copies from a GPU to host memory that run while libtorch computes.

use cudarc::driver::{CudaEvent, PinnedHostSlice, result::memcpy_dtoh_async, sys};
use tch::{Device, Kind, Tensor};

use super::{HOST_STAND_IN, error::CudaError, gpu::Gpu, stream::SideStream};

/// Size in bytes of each of the two pinned buffers: large enough for the full bandwidth of the bus, small compared with a
/// model.
const STAGE: usize = 32 << 20;

/// Copies tensors to host memory through pinned buffers, on its own stream.
pub struct HostCopier {
    stream: SideStream,
    stages: [Stage; 2],
}

/// A pinned buffer and the event that completes when the copy into it has arrived.
struct Stage {
    pinned: PinnedHostSlice<u8>,
    arrived: Option<CudaEvent>,
}

impl HostCopier {
    /// Creates a copier for a GPU, with 64 MiB of pinned memory.
    ///
    /// # Errors
    /// Returns an error if the driver has no pinned memory or no stream left.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let stage = || -> Result<Stage, CudaError> {
            // SAFETY: the buffer is read only where a copy has filled it. No flags: the CPU reads it, and reading
            // write-combined memory is slow.
            let pinned = unsafe { gpu.context.alloc_pinned_with_flags(STAGE, 0)? };
            Ok(Stage { pinned, arrived: None })
        };
        Ok(Self { stream: gpu.stream()?, stages: [stage()?, stage()?] })
    }

    /// Copies a contiguous float32 tensor of this GPU into `out`, which must have the size of the tensor. The copy sees all
    /// work that was submitted to libtorch before the call. The caller must not change the tensor until it returns.
    ///
    /// # Errors
    /// Returns [`CudaError::Layout`] if the tensor cannot be copied, or an error reported by CUDA.
    pub fn copy(&mut self, tensor: &Tensor, out: &mut [u8]) -> Result<(), CudaError> {
        let bytes = tensor.numel() * size_of::<f32>();
        let context = self.stream.context().clone();
        let here = match tensor.device() {
            Device::Cuda(ordinal) => ordinal == context.ordinal(),
            // The memory of the stand-in is host memory.
            _ => std::env::var_os(HOST_STAND_IN).is_some(),
        };
        if !here || tensor.kind() != Kind::Float || !tensor.is_contiguous() || bytes != out.len() {
            return Err(CudaError::Layout(tensor.kind(), tensor.device()));
        }
        context.bind_to_thread()?;
        self.stream.after_libtorch()?;
        let copied = self.copy_in_stages(tensor.data_ptr() as sys::CUdeviceptr, out);
        // No copy into the buffers may be in flight when this returns, not even after an error.
        let settled = self.stream.own().synchronize().map_err(CudaError::from);
        copied.and(settled)
    }

    /// Fills one buffer while the other is being emptied.
    fn copy_in_stages(&mut self, source: sys::CUdeviceptr, out: &mut [u8]) -> Result<(), CudaError> {
        let (bytes, pieces) = (out.len(), out.len().div_ceil(STAGE));
        let piece = |index: usize| index * STAGE..((index + 1) * STAGE).min(bytes);
        for index in 0..=pieces {
            if index < pieces {
                let range = piece(index);
                let stage = &mut self.stages[index % 2];
                let target = &mut stage.pinned.as_mut_slice()?[..range.len()];
                // SAFETY: `source..source + out.len()` is the memory of the tensor, which the caller keeps alive; the
                // pinned buffer lives in `self` and is not accessed before `arrived` completes, and `copy` synchronizes
                // the stream before it returns, even after an error.
                unsafe { memcpy_dtoh_async(target, source + range.start as u64, self.stream.raw())? };
                stage.arrived = Some(self.stream.own().record_event(None)?);
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
