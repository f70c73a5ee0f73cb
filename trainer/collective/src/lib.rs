//! Everything a rank needs to compute as one of many: where it runs, which device it uses, and the collective operations
//! that connect it with the other ranks.
//!
//! - [`LaunchEnvironment`] reads the rank and world size that mpirun or Slurm assigned to this process.
//! - [`device`] and [`machine`] select the device, the CPU cores and the memory of this rank.
//! - [`connect()`] returns the [`Collective`] of the job: MPI for tensors in host memory, NCCL for tensors on GPUs.
//! - [`agree`] and [`require_equal`] let all ranks continue or end together.
//! - [`cuda`] has the CUDA calls that tch lacks; [`host_memory`] gives slices over tensors in host memory.
//! - [`WorkGroup`] distributes independent pieces of work, such as the shards that `arinar-data encode` writes.
//!
//! This crate knows nothing of models, datasets or checkpoints. Begin with the [`Collective`] trait.
//!
//! ```
//! use arinar_collective::{Collective, Single, agree, gather, CollectiveError, Reduction};
//!
//! // One rank by itself; under mpirun, `connect` returns an implementation over MPI or NCCL with the same interface.
//! let ranks = Single;
//! let mut values = [1.5, 2.5];
//! ranks.all_reduce_scalars(&mut values, Reduction::Sum)?;
//! assert_eq!(values, [1.5, 2.5]);
//! assert_eq!(gather(&ranks, b"hello")?, [b"hello"]);
//! // Returns an error on every rank if any rank failed.
//! let opened = agree(&ranks, Ok::<_, CollectiveError>("file"))?;
//! assert_eq!(opened, "file");
//! # Ok::<(), CollectiveError>(())
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod agree;
mod collective;
mod conformance;
mod connect;
pub mod cuda;
pub mod device;
mod error;
pub mod host_memory;
mod launch;
pub mod machine;
mod mpi;
pub mod nccl;
mod single;
mod work_group;

pub use agree::{JobError, agree, gather, require_equal};
pub use collective::{Collective, Reduction};
pub use conformance::conformance;
pub use connect::{Connected, connect};
pub use error::CollectiveError;
pub use launch::{LaunchEnvironment, launched_rank};
pub use mpi::{MpiCollective, library_version};
pub use nccl::NcclCollective;
pub use single::Single;
pub use work_group::{WorkGroup, WorkGroupError};
