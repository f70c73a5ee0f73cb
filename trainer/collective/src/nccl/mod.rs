//! Collectives over NCCL for tensors on GPUs. Everything else is exchanged over MPI.

mod communicator;

use std::{mem::ManuallyDrop, ops::Range};

use tch::{Device, Kind, Tensor};

use self::communicator::Communicator;
use crate::{
    agree::{agree, gather, require_equal},
    collective::{Collective, Reduction},
    cuda::{self, Gpu, HOST_STAND_IN, SideStream},
    error::CollectiveError,
    mpi::MpiCollective,
};

/// Elements per call (64 MiB): enough for the full bandwidth, and few enough that an aborted communicator stops soon.
const BUCKET: usize = 1 << 24;

/// Returns the version of NCCL, for example "2.29.7".
///
/// # Errors
/// Returns [`CollectiveError::NcclMissing`] if NCCL cannot be loaded.
pub fn version() -> Result<String, CollectiveError> {
    let version = communicator::version()?;
    Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}

/// Creates a unique id as rank 0 does for all ranks. Shows that NCCL can be called on a machine without a GPU.
///
/// # Errors
/// Returns [`CollectiveError::NcclMissing`] if NCCL cannot be loaded, or the error that NCCL reports.
pub fn unique_id() -> Result<Vec<u8>, CollectiveError> {
    communicator::unique_id()
}

/// All ranks of an MPI job, each with its own GPU. After an error of NCCL or CUDA the process must exit, so that mpirun ends
/// the other ranks, which may otherwise wait for it forever.
pub struct NcclCollective {
    communicator: Communicator,
    stream: SideStream,
    /// Device of the tensors.
    device: Device,
    version: String,
    /// Finalized in [`Drop`], unless the communicator failed.
    mpi: ManuallyDrop<MpiCollective>,
}

impl Drop for NcclCollective {
    fn drop(&mut self) {
        // Finalizing MPI waits for every rank, and a rank that is blocked in NCCL never arrives.
        if self.communicator.finalize().is_ok() {
            // SAFETY: dropped only here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.mpi) };
        }
    }
}

/// The resources of a rank before it joins the others.
struct Prepared {
    version: String,
    gpu: Gpu,
    stream: SideStream,
    /// Identifies the GPU, which no two ranks may share.
    description: String,
}

impl NcclCollective {
    /// Creates a communicator of all ranks of `mpi`. `device` is the GPU of this rank. The unique id is exchanged over MPI.
    ///
    /// # Errors
    /// Returns an error on all ranks if NCCL or CUDA cannot be used, if their versions differ, or if two ranks share a GPU.
    pub fn start(mpi: MpiCollective, device: Device) -> Result<Self, CollectiveError> {
        let ordinal = match device {
            Device::Cuda(ordinal) => Ok(ordinal),
            _ if std::env::var_os(HOST_STAND_IN).is_some() => Ok(0),
            _ => Err(CollectiveError::Layout { kind: Kind::Float, device }),
        };
        let prepared =
            agree(&mpi, ordinal.and_then(prepare).map_err(|error| CollectiveError::Unavailable(Box::new(error))))?;
        require_equal(&mpi, &[("NCCL", prepared.version.clone())])?;
        if device != Device::Cpu {
            require_distinct(&mpi, &prepared.description)?;
        }
        let id = if mpi.rank() == 0 { communicator::unique_id() } else { Ok(Vec::new()) };
        let id = mpi.broadcast_bytes(agree(&mpi, id)?, 0)?;
        // From here on the other ranks may be blocked in NCCL, where MPI does not reach them.
        let mpi = ManuallyDrop::new(mpi);
        let communicator = Communicator::join(&prepared.gpu, &id, mpi.rank(), mpi.world_size())?;
        Ok(Self { communicator, stream: prepared.stream, device, version: prepared.version, mpi })
    }

    /// Submits NCCL calls in order with libtorch's work before and after them, and waits until they are done.
    fn run(&self, calls: impl FnOnce(&Communicator) -> Result<(), CollectiveError>) -> Result<(), CollectiveError> {
        let ran = self.enqueue(calls).and_then(|done| cuda::wait(&done, || self.communicator.check()));
        if ran.is_err() {
            self.communicator.abort();
        }
        ran
    }

    fn enqueue(
        &self,
        calls: impl FnOnce(&Communicator) -> Result<(), CollectiveError>,
    ) -> Result<cudarc::driver::CudaEvent, CollectiveError> {
        self.stream.after_libtorch()?;
        calls(&self.communicator)?;
        Ok(self.stream.before_libtorch()?)
    }

    /// Returns the address and length of a flat tensor.
    fn buffer(&self, flat: &Tensor) -> Result<DeviceBuffer, CollectiveError> {
        if flat.kind() != Kind::Float || flat.device() != self.device || !flat.is_contiguous() {
            return Err(CollectiveError::Layout { kind: flat.kind(), device: flat.device() });
        }
        Ok(DeviceBuffer { address: flat.data_ptr().cast(), elements: flat.numel() })
    }
}

/// A range of float32 elements in the memory of this rank's GPU.
#[derive(Clone, Copy)]
struct DeviceBuffer {
    address: *mut f32,
    elements: usize,
}

impl DeviceBuffer {
    /// Returns the elements in `range`; those outside the buffer are ignored.
    fn slice(self, range: &Range<usize>) -> Self {
        let start = range.start.min(self.elements);
        let elements = range.end.min(self.elements) - start;
        Self { address: self.address.wrapping_add(start), elements }
    }

    /// Splits the buffer into buckets, in order.
    fn buckets(self) -> impl Iterator<Item = Self> {
        (0..self.elements).step_by(BUCKET).map(move |start| Self {
            // Within the buffer, since `start` is less than its length.
            address: self.address.wrapping_add(start),
            elements: BUCKET.min(self.elements - start),
        })
    }
}

fn prepare(ordinal: usize) -> Result<Prepared, CollectiveError> {
    communicator::require_calls()?;
    let version = version()?;
    let gpu = Gpu::open(ordinal)?;
    let stream = gpu.stream()?;
    Ok(Prepared { version, gpu, stream, description: cuda::description(ordinal) })
}

/// Checks that no two ranks use the same GPU, which NCCL does not support.
fn require_distinct(mpi: &MpiCollective, mine: &str) -> Result<(), CollectiveError> {
    let gpus = gather(mpi, mine.as_bytes())?;
    let first = gpus.iter().position(|gpu| gpu == mine.as_bytes()).unwrap_or(mpi.rank());
    let rank = mpi.rank();
    let shared = || CollectiveError::SharedGpu { first, rank, gpu: mine.to_owned() };
    agree(mpi, if first == rank { Ok(()) } else { Err(shared()) })
}

impl Collective for NcclCollective {
    fn rank(&self) -> usize {
        self.mpi.rank()
    }

    fn world_size(&self) -> usize {
        self.mpi.world_size()
    }

    fn describe(&self) -> String {
        let runtime = cuda::runtime_version().unwrap_or_else(|| "none".to_owned());
        let driver = cuda::driver_version().unwrap_or_else(|| "none".to_owned());
        format!("NCCL {} (CUDA {runtime}, driver {driver}), {}", self.version, self.mpi.describe())
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        self.mpi.barrier()
    }

    fn all_reduce_sum(&self, flat: &mut Tensor) -> Result<(), CollectiveError> {
        let buffer = self.buffer(flat)?;
        self.run(|communicator| {
            // SAFETY: each bucket is within `flat`, which is contiguous float32 on this rank's device. The exclusive borrow
            // and the wait in `run` keep it alive and unshared until NCCL has finished or is aborted.
            buffer.buckets().try_for_each(|bucket| unsafe {
                communicator.all_reduce_sum(bucket.address, bucket.elements, self.stream.raw())
            })
        })
    }

    fn broadcast(&self, flat: &mut Tensor, root: usize) -> Result<(), CollectiveError> {
        let buffer = self.buffer(flat)?;
        self.run(|communicator| {
            // SAFETY: as in `all_reduce_sum`.
            buffer.buckets().try_for_each(|bucket| unsafe {
                communicator.broadcast(bucket.address, bucket.elements, root, self.stream.raw())
            })
        })
    }

    fn all_gather(&self, flat: &mut Tensor, ranges: &[Range<usize>]) -> Result<(), CollectiveError> {
        let buffer = self.buffer(flat)?;
        // All parts are submitted before the first one is waited for.
        self.run(|communicator| {
            ranges.iter().enumerate().try_for_each(|(root, range)| {
                // SAFETY: as in `all_reduce_sum`; `slice` stays within the tensor.
                buffer.slice(range).buckets().try_for_each(|bucket| unsafe {
                    communicator.broadcast(bucket.address, bucket.elements, root, self.stream.raw())
                })
            })
        })
    }

    fn all_reduce_scalars(&self, scalars: &mut [f64], how: Reduction) -> Result<(), CollectiveError> {
        self.mpi.all_reduce_scalars(scalars, how)
    }

    fn broadcast_bytes(&self, bytes: Vec<u8>, root: usize) -> Result<Vec<u8>, CollectiveError> {
        self.mpi.broadcast_bytes(bytes, root)
    }
}
