//! Collectives over MPI, for tensors in host memory.

use std::cell::RefCell;

use mpi::{
    collective::SystemOperation,
    environment::Universe,
    topology::SimpleCommunicator,
    traits::{Communicator, CommunicatorCollectives, Root},
};
use tch::Tensor;

use crate::{
    collective::{Collective, Reduction},
    error::CollectiveError,
    host_memory,
};

/// Elements per all-reduce call: enough to hide the latency of a call, and few enough that a bucket and its result stay
/// in the cache.
const BUCKET: usize = 1 << 20;

/// Returns the name and version of the MPI library, for example "Open MPI v4.1.4". MPI need not be initialized.
pub fn library_version() -> String {
    let version = mpi::environment::library_version().unwrap_or_default();
    // The remaining fields describe who built it.
    version.split(',').next().unwrap_or_default().trim_end_matches('\0').to_owned()
}

/// All ranks of an MPI job. Dropping it finalizes MPI, which waits for every rank.
pub struct MpiCollective {
    world: SimpleCommunicator,
    // The result of one bucket, kept so that it stays in the cache.
    received: RefCell<Vec<f32>>,
    // Dropped last: it finalizes MPI.
    _universe: Universe,
}

impl MpiCollective {
    /// Initializes MPI. Only the calling thread may make collective calls afterwards.
    ///
    /// # Errors
    /// Returns [`CollectiveError::Start`] if MPI is already running or cannot be initialized.
    pub fn start() -> Result<Self, CollectiveError> {
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled).ok_or(CollectiveError::Start)?;
        let world = universe.world();
        Ok(Self { world, received: RefCell::new(Vec::new()), _universe: universe })
    }

    fn elements<'a>(&self, flat: &'a mut Tensor) -> Result<&'a mut [f32], CollectiveError> {
        if !host_memory::is_host(flat) {
            return Err(CollectiveError::Layout { kind: flat.kind(), device: flat.device() });
        }
        Ok(host_memory::slice_mut(flat))
    }

    fn root(&self, root: usize) -> mpi::topology::Process<'_> {
        self.world.process_at_rank(root as i32)
    }
}

impl Collective for MpiCollective {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world_size(&self) -> usize {
        self.world.size() as usize
    }

    fn describe(&self) -> String {
        library_version()
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        self.world.barrier();
        Ok(())
    }

    fn all_reduce_sum(&self, flat: &mut Tensor) -> Result<(), CollectiveError> {
        let elements = self.elements(flat)?;
        if self.world_size() == 1 {
            return Ok(());
        }
        let mut received = self.received.borrow_mut();
        received.resize(BUCKET.min(elements.len()), 0.0);
        for bucket in elements.chunks_mut(BUCKET) {
            let result = &mut received[..bucket.len()];
            self.world.all_reduce_into(&*bucket, result, SystemOperation::sum());
            bucket.copy_from_slice(result);
        }
        Ok(())
    }

    fn broadcast(&self, flat: &mut Tensor, root: usize) -> Result<(), CollectiveError> {
        for bucket in self.elements(flat)?.chunks_mut(BUCKET) {
            self.root(root).broadcast_into(bucket);
        }
        Ok(())
    }

    fn all_reduce_scalars(&self, scalars: &mut [f64], how: Reduction) -> Result<(), CollectiveError> {
        let operation = match how {
            Reduction::Sum => SystemOperation::sum(),
            Reduction::Min => SystemOperation::min(),
            Reduction::Max => SystemOperation::max(),
        };
        let mine = scalars.to_vec();
        self.world.all_reduce_into(mine.as_slice(), scalars, operation);
        Ok(())
    }

    fn broadcast_bytes(&self, bytes: Vec<u8>, root: usize) -> Result<Vec<u8>, CollectiveError> {
        let too_long = i32::try_from(bytes.len()).is_err();
        let mut len = if too_long { u64::MAX } else { bytes.len() as u64 };
        self.root(root).broadcast_into(&mut len);
        if len == u64::MAX {
            return Err(CollectiveError::TooLong { bytes: bytes.len() });
        }
        let mut bytes = bytes;
        bytes.resize(len as usize, 0);
        // MPI does not accept the dangling pointer of an empty slice.
        if !bytes.is_empty() {
            self.root(root).broadcast_into(bytes.as_mut_slice());
        }
        Ok(bytes)
    }
}
