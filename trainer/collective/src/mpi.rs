//! Ranks started by mpirun, tensors in host memory.

use std::cell::RefCell;

use mpi::{
    collective::SystemOperation,
    environment::Universe,
    topology::SimpleCommunicator,
    traits::{Communicator, CommunicatorCollectives, Root},
};
use tch::Tensor;

use super::{Collective, CollectiveError, Reduction};
use crate::host;

/// Elements per all-reduce call. Large enough that the latency of a call is lost in it, small
/// enough that a bucket and its result stay in the cache.
const BUCKET: usize = 1 << 20;

/// What mpirun says about this process before MPI is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// This rank among those of its machine.
    pub local_rank: usize,
    /// Ranks on its machine.
    pub local_world: usize,
}

impl Launch {
    /// Reads what Open MPI, or a launcher speaking PMIx or PMI, leaves in the environment; `None`
    /// for a process started by hand.
    pub fn from_environment() -> Option<Self> {
        let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
        let open_mpi = || {
            Some(Self {
                rank: number("OMPI_COMM_WORLD_RANK")?,
                world: number("OMPI_COMM_WORLD_SIZE")?,
                local_rank: number("OMPI_COMM_WORLD_LOCAL_RANK")?,
                local_world: number("OMPI_COMM_WORLD_LOCAL_SIZE")?,
            })
        };
        let slurm = || {
            std::env::var_os("PMIX_RANK").or_else(|| std::env::var_os("PMI_RANK"))?;
            Some(Self {
                rank: number("SLURM_PROCID")?,
                world: number("SLURM_NTASKS")?,
                local_rank: number("SLURM_LOCALID")?,
                local_world: tasks_of_node(&std::env::var("SLURM_STEP_TASKS_PER_NODE").ok()?, number("SLURM_NODEID")?)?,
            })
        };
        open_mpi().or_else(slurm)
    }
}

/// Tasks on one node of a list as Slurm writes it, from the first on: `4(x2),3` is 4, 4, 3.
fn tasks_of_node(list: &str, node: usize) -> Option<usize> {
    let mut before = 0;
    for entry in list.split(',') {
        let (tasks, nodes) = match entry.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (entry, 1),
        };
        before += nodes;
        if node < before {
            return tasks.parse().ok();
        }
    }
    None
}

/// Name and version of the MPI library, as "Open MPI v4.1.4"; it need not be started.
pub fn library_version() -> String {
    let version = mpi::environment::library_version().unwrap_or_default();
    // Its other parts say who built it.
    version.split(',').next().unwrap_or_default().trim_end_matches('\0').to_owned()
}

/// All ranks of an MPI job. Dropping it ends MPI, which waits for every rank.
pub struct MpiCollective {
    world: SimpleCommunicator,
    // One bucket's worth of results, kept so that it stays in the cache.
    received: RefCell<Vec<f32>>,
    // Dropped last: it finalises MPI.
    _universe: Universe,
}

impl MpiCollective {
    /// Starts MPI. Only the calling thread may make collective calls afterwards.
    ///
    /// # Errors
    /// [`CollectiveError::Start`] when it is running already or does not start.
    pub fn start() -> Result<Self, CollectiveError> {
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled).ok_or(CollectiveError::Start)?;
        let world = universe.world();
        Ok(Self { world, received: RefCell::new(Vec::new()), _universe: universe })
    }

    fn elements<'a>(&self, flat: &'a mut Tensor) -> Result<&'a mut [f32], CollectiveError> {
        if !host::is_host(flat) {
            return Err(CollectiveError::Layout { kind: flat.kind(), device: flat.device() });
        }
        Ok(host::slice_mut(flat))
    }

    fn root(&self, root: usize) -> mpi::topology::Process<'_> {
        self.world.process_at_rank(root as i32)
    }
}

impl Collective for MpiCollective {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world(&self) -> usize {
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
        if self.world() == 1 {
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
        // The pointer of an empty slice is not one that MPI takes.
        if !bytes.is_empty() {
            self.root(root).broadcast_into(bytes.as_mut_slice());
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::tasks_of_node;

    #[test]
    fn slurm_lists_are_read() {
        let tasks = |list| (0..4).map(|node| tasks_of_node(list, node)).collect::<Vec<_>>();
        assert_eq!(tasks("8"), [Some(8), None, None, None]);
        assert_eq!(tasks("4(x2),3"), [Some(4), Some(4), Some(3), None]);
        assert_eq!(tasks("2,4(x3)"), [Some(2), Some(4), Some(4), Some(4)]);
        for damaged in ["", "x", "2(x", "2(xa)", "(x2)"] {
            assert_eq!(tasks_of_node(damaged, 0), None, "{damaged}");
        }
    }
}
