//! Errors of collective operations.

use crate::cuda::CudaError;

/// An error of a collective operation.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// MPI cannot be initialized.
    #[error("MPI does not start on this machine; check the Open MPI installation (ops/bootstrap.sh)")]
    Start,
    /// The tensor cannot take part: only contiguous float32 tensors can, in host memory through MPI and in the memory
    /// of the rank's GPU through NCCL.
    #[error(
        "a {kind:?} tensor on {device:?} cannot be reduced: it must be contiguous float32 where this rank computes"
    )]
    Layout {
        /// Element type of the tensor.
        kind: tch::Kind,
        /// Device of the tensor.
        device: tch::Device,
    },
    /// The message is longer than MPI's counts can express.
    #[error("a message of {bytes} bytes is too long for one broadcast")]
    TooLong {
        /// Length of the message.
        bytes: usize,
    },
    /// NCCL is not installed.
    #[error("libnccl.so is not found; run ops/bootstrap.sh --cuda, or set train.device=cpu")]
    NcclMissing,
    /// The NCCL library that was found is too old.
    #[error(
        "the NCCL that is found has version {version} and is too old (2.14 at least); take its folder out of \
         LD_LIBRARY_PATH, so that libtorch's is found"
    )]
    NcclTooOld {
        /// Version number as NCCL reports it, for example 21304 for 2.13.4.
        version: i32,
    },
    /// NCCL reports an error, for example because a peer died. The communicator is aborted and the other ranks cannot be
    /// notified.
    #[error("NCCL, while {during}: {what}; set NCCL_DEBUG=INFO for details")]
    Nccl {
        /// The operation that failed.
        during: &'static str,
        /// NCCL's error message.
        what: String,
    },
    /// CUDA reports an error.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// This rank cannot use NCCL or its GPU. Detected before the ranks connect over NCCL, so that all ranks end together.
    #[error(transparent)]
    Unavailable(Box<CollectiveError>),
    /// Two ranks were started on the same GPU.
    #[error(
        "ranks {first} and {rank} both have {gpu}; start no more ranks on a machine than it has GPUs, or set \
         train.device=cpu"
    )]
    SharedGpu {
        /// The lowest rank on this GPU.
        first: usize,
        /// This rank.
        rank: usize,
        /// The GPU and its host.
        gpu: String,
    },
    /// A value that must be the same on all ranks differs.
    #[error(
        "rank {rank} has {name} {value:?} but rank 0 has {expected:?}; start every rank with the same program, \
         configuration and data"
    )]
    Mismatch {
        /// This rank.
        rank: usize,
        /// Name of the value.
        name: String,
        /// Value on this rank.
        value: String,
        /// Value on rank 0.
        expected: String,
    },
    /// Another rank ends the job and reports the reason.
    #[error("stopped because of rank {rank}")]
    OtherRank {
        /// The rank that reports the reason.
        rank: usize,
        /// The exit code of all ranks.
        exit_code: u8,
    },
}
