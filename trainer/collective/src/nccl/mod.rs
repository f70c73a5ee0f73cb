//! Ranks with a GPU each: tensors travel through NCCL, everything else through MPI.

mod communicator;

use std::{mem::ManuallyDrop, ops::Range};

use tch::{Device, Kind, Tensor};

use self::communicator::Communicator;
use super::{Collective, CollectiveError, MpiCollective, Reduction, agree, gather, require_equal};
use crate::{
    cuda::{self, CudaError, Gpu, HOST_STAND_IN, SideStream},
    exit::Stop,
};

/// Elements per all-reduce call, 64 MiB: long enough for the full bandwidth, and short enough that a communicator that
/// is aborted stops soon.
const BUCKET: usize = 1 << 24;

/// NCCL's version as "2.29.7".
///
/// # Errors
/// [`CollectiveError::NcclMissing`].
pub fn version() -> Result<String, CollectiveError> {
    let version = communicator::version()?;
    Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}

/// A unique id, as rank 0 makes it for all; to see that NCCL works where there is no GPU.
///
/// # Errors
/// [`CollectiveError::NcclMissing`], [`CollectiveError::Nccl`].
pub fn unique_id() -> Result<Vec<u8>, CollectiveError> {
    communicator::unique_id()
}

/// All ranks of an MPI job, each with a GPU of its own. After an error of NCCL or CUDA the other ranks may wait for this
/// one in vain: it is for the process to end, whereupon mpirun ends theirs.
pub struct NcclCollective {
    communicator: Communicator,
    stream: SideStream,
    /// Where the tensors lie.
    memory: Device,
    version: String,
    /// Ended in [`Drop`], if at all.
    mpi: ManuallyDrop<MpiCollective>,
}

impl Drop for NcclCollective {
    fn drop(&mut self) {
        // To end MPI is to wait for every rank. Ranks that stand still within NCCL never come.
        if self.communicator.part().is_ok() {
            // SAFETY: this is the only place that drops it, and nothing uses it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.mpi) };
        }
    }
}

/// What a rank has ready before it meets the others.
struct Prepared {
    version: String,
    gpu: Gpu,
    stream: SideStream,
    /// Where the GPU is: no two ranks may have the same.
    place: String,
}

impl NcclCollective {
    /// Joins all ranks of `mpi`; `device` is this rank's GPU. The unique id travels through MPI.
    ///
    /// # Errors
    /// NCCL or CUDA is missing or refuses, versions differ, two ranks have one GPU; all ranks end together.
    pub fn start(mpi: MpiCollective, device: Device) -> Result<Self, Stop> {
        let ordinal = match device {
            Device::Cuda(ordinal) => Ok(ordinal),
            _ if std::env::var_os(HOST_STAND_IN).is_some() => Ok(0),
            _ => Err(CollectiveError::Layout { kind: Kind::Float, device }),
        };
        let prepared = agree(&mpi, ordinal.and_then(prepare).map_err(Stop::configuration))?;
        require_equal(&mpi, &[("NCCL", prepared.version.clone())])?;
        if device != Device::Cpu {
            require_distinct(&mpi, &prepared.place)?;
        }
        let id = if mpi.rank() == 0 { communicator::unique_id().map_err(Stop::from) } else { Ok(Vec::new()) };
        let id = mpi.broadcast_bytes(agree(&mpi, id)?, 0)?;
        // From here on the others may wait in NCCL, where MPI does not reach them.
        let mpi = ManuallyDrop::new(mpi);
        let communicator = Communicator::join(&prepared.gpu, &id, mpi.rank(), mpi.world())?;
        Ok(Self { communicator, stream: prepared.stream, memory: device, version: prepared.version, mpi })
    }

    /// Puts calls on NCCL's stream, after what libtorch computes and before what it will, and waits for the end.
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

    /// Address and length of a flat tensor's memory.
    fn memory(&self, flat: &Tensor) -> Result<Memory, CollectiveError> {
        if flat.kind() != Kind::Float || flat.device() != self.memory || !flat.is_contiguous() {
            return Err(CollectiveError::Layout { kind: flat.kind(), device: flat.device() });
        }
        Ok(Memory { address: flat.data_ptr().cast(), elements: flat.numel() })
    }
}

/// A stretch of float32 in the memory of this rank's GPU.
#[derive(Clone, Copy)]
struct Memory {
    address: *mut f32,
    elements: usize,
}

impl Memory {
    /// Some of it; what lies outside is left out.
    fn part(self, range: &Range<usize>) -> Self {
        let start = range.start.min(self.elements);
        let elements = range.end.min(self.elements) - start;
        Self { address: self.address.wrapping_add(start), elements }
    }

    /// Cut into buckets, in order.
    fn buckets(self) -> impl Iterator<Item = Self> {
        (0..self.elements).step_by(BUCKET).map(move |start| Self {
            // Within the stretch: `start` is below its length.
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
    Ok(Prepared { version, gpu, stream, place: cuda::place(ordinal) })
}

/// NCCL takes one rank per GPU.
fn require_distinct(mpi: &MpiCollective, mine: &str) -> Result<(), Stop> {
    let places = gather(mpi, mine.as_bytes())?;
    let first = places.iter().position(|place| place == mine.as_bytes()).unwrap_or(mpi.rank());
    let result = if first == mpi.rank() {
        Ok(())
    } else {
        Err(Stop::Configuration(format!(
            "ranks {first} and {} both have {mine}; start no more ranks on a machine than it has GPUs, or set \
             train.device=cpu",
            mpi.rank()
        )))
    };
    agree(mpi, result)
}

impl Collective for NcclCollective {
    fn rank(&self) -> usize {
        self.mpi.rank()
    }

    fn world(&self) -> usize {
        self.mpi.world()
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
        let memory = self.memory(flat)?;
        self.run(|communicator| {
            // SAFETY: each bucket lies within `flat`, which is contiguous float32 on this rank's device; the exclusive
            // borrow and the wait in `run` keep it, and keep others away from it, until NCCL is done or aborted.
            memory.buckets().try_for_each(|bucket| unsafe {
                communicator.all_reduce_sum(bucket.address, bucket.elements, self.stream.raw())
            })
        })
    }

    fn broadcast(&self, flat: &mut Tensor, root: usize) -> Result<(), CollectiveError> {
        let memory = self.memory(flat)?;
        self.run(|communicator| {
            // SAFETY: as in `all_reduce_sum`.
            memory.buckets().try_for_each(|bucket| unsafe {
                communicator.broadcast(bucket.address, bucket.elements, root, self.stream.raw())
            })
        })
    }

    fn all_gather(&self, flat: &mut Tensor, ranges: &[Range<usize>]) -> Result<(), CollectiveError> {
        let memory = self.memory(flat)?;
        // All parts are put on the stream before the first is waited for.
        self.run(|communicator| {
            ranges.iter().enumerate().try_for_each(|(root, range)| {
                // SAFETY: as in `all_reduce_sum`; `part` stays within the tensor.
                memory.part(range).buckets().try_for_each(|bucket| unsafe {
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

impl From<CudaError> for CollectiveError {
    fn from(error: CudaError) -> Self {
        Self::Cuda(error.to_string())
    }
}
