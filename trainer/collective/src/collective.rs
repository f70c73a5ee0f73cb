//! What ranks do together: sums, broadcasts, and agreeing on how things went.

mod mpi;
pub mod nccl;
mod single;
mod start;

use std::ops::Range;

use tch::Tensor;

use crate::exit::{self, Stop};

pub use mpi::{Launch, MpiCollective, library_version};
pub use nccl::NcclCollective;
pub use single::Single;
pub use start::start;

/// A collective call that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// MPI did not start.
    #[error("MPI does not start on this machine; check the Open MPI installation (ops/bootstrap.sh)")]
    Start,
    /// Only contiguous float32 tensors travel: in host memory through MPI, in that of the rank's GPU through NCCL.
    #[error(
        "a {kind:?} tensor on {device:?} cannot be reduced: it must be contiguous float32 where this rank computes"
    )]
    Layout {
        /// Its element type.
        kind: tch::Kind,
        /// Where it lies.
        device: tch::Device,
    },
    /// A message longer than MPI's counts.
    #[error("a message of {bytes} bytes is too long for one broadcast")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// NCCL is not installed.
    #[error("libnccl.so is not found; run ops/bootstrap.sh --cuda, or set train.device=cpu")]
    NcclMissing,
    /// NCCL is another one than libtorch's.
    #[error(
        "the NCCL that is found has version {version} and is too old (2.14 at least); take its folder out of \
         LD_LIBRARY_PATH, so that libtorch's is found"
    )]
    NcclTooOld {
        /// As NCCL writes it.
        version: i32,
    },
    /// NCCL reports an error, a peer's end among them. The communicator is aborted; the other ranks cannot be told.
    #[error("NCCL, while {during}: {what}; NCCL_DEBUG=INFO tells more")]
    Nccl {
        /// What was going on.
        during: &'static str,
        /// NCCL's words.
        what: String,
    },
    /// CUDA reports an error.
    #[error("{0}")]
    Cuda(String),
}

/// How [`Collective::all_reduce_scalars`] combines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Adds.
    Sum,
    /// Keeps the least.
    Min,
    /// Keeps the greatest.
    Max,
}

/// A fixed group of ranks. Every rank must make the same calls in the same order.
pub trait Collective {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// The libraries that carry it, with their versions.
    fn describe(&self) -> String;

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// [`CollectiveError`].
    fn barrier(&self) -> Result<(), CollectiveError>;

    /// Replaces a flat float32 tensor by its sum over the ranks; every rank gets the same bits, and
    /// the same world size gives the same bits again.
    ///
    /// # Errors
    /// [`CollectiveError::Layout`].
    fn all_reduce_sum(&self, flat: &mut Tensor) -> Result<(), CollectiveError>;

    /// Replaces a flat float32 tensor by that of rank `root`.
    ///
    /// # Errors
    /// [`CollectiveError::Layout`].
    fn broadcast(&self, flat: &mut Tensor, root: usize) -> Result<(), CollectiveError>;

    /// Combines a few numbers over the ranks.
    ///
    /// # Errors
    /// [`CollectiveError`].
    fn all_reduce_scalars(&self, scalars: &mut [f64], how: Reduction) -> Result<(), CollectiveError>;

    /// Gives every rank the bytes of rank `root`; what the others pass is ignored.
    ///
    /// # Errors
    /// [`CollectiveError::TooLong`].
    fn broadcast_bytes(&self, bytes: Vec<u8>, root: usize) -> Result<Vec<u8>, CollectiveError>;

    /// Gives every rank the whole of a flat tensor of which rank i holds the valid `ranges[i]`.
    ///
    /// # Errors
    /// [`CollectiveError::Layout`].
    fn all_gather(&self, flat: &mut Tensor, ranges: &[Range<usize>]) -> Result<(), CollectiveError> {
        for (root, range) in ranges.iter().enumerate() {
            let mut part = flat.narrow(0, range.start as i64, range.len() as i64);
            self.broadcast(&mut part, root)?;
        }
        Ok(())
    }
}

impl From<CollectiveError> for Stop {
    fn from(error: CollectiveError) -> Self {
        match error {
            CollectiveError::Nccl { .. } | CollectiveError::Cuda(_) => Self::Broken(error.to_string()),
            other => Self::failure(other),
        }
    }
}

/// Every rank's bytes, by rank.
///
/// # Errors
/// [`CollectiveError`].
pub fn gather(collective: &dyn Collective, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
    (0..collective.world()).map(|root| collective.broadcast_bytes(mine.to_vec(), root)).collect()
}

/// Lets all ranks go on or end together: `Ok` only where every rank brought `Ok`. Of the ranks that
/// failed the lowest keeps its error, which it will tell; all others end quietly with its code.
///
/// # Errors
/// Some rank's error.
pub fn agree<T>(collective: &dyn Collective, result: Result<T, Stop>) -> Result<T, Stop> {
    let (rank, none) = (collective.rank() as f64, collective.world() as f64);
    let mut first = [if result.is_err() { rank } else { none }];
    collective.all_reduce_scalars(&mut first, Reduction::Min)?;
    if first[0] >= none {
        return result;
    }
    let tells = first[0] as usize == collective.rank();
    let mut code = [match &result {
        Err(stop) if tells => f64::from(stop.code()),
        _ => 0.0,
    }];
    collective.all_reduce_scalars(&mut code, Reduction::Max)?;
    match result {
        Err(stop) if tells => Err(stop),
        _ => Err(Stop::Elsewhere { rank: first[0] as usize, code: code[0] as u8 }),
    }
}

/// Fails on every rank unless all ranks hold the same facts. `facts` are names and values, the
/// names equal on all ranks.
///
/// # Errors
/// [`Stop::Configuration`] naming the first fact that differs from rank 0's and both values.
pub fn require_equal(collective: &dyn Collective, facts: &[(&str, String)]) -> Result<(), Stop> {
    for (name, mine) in facts {
        let first = collective.broadcast_bytes(mine.clone().into_bytes(), 0)?;
        let result = if first == mine.as_bytes() {
            Ok(())
        } else {
            Err(Stop::Configuration(format!(
                "rank {} has {name} {mine:?} but rank 0 has {:?}; start every rank with the same \
                 program, configuration and data",
                collective.rank(),
                String::from_utf8_lossy(&first)
            )))
        };
        agree(collective, result)?;
    }
    Ok(())
}

/// What every implementation must do; run on one rank here, and under mpirun over MPI (`tests/trainer_ranks.rs`) and
/// over NCCL's stand-in (`tests/trainer_nccl.rs`). `device` is where its tensors lie.
///
/// # Errors
/// A sentence saying what does not hold.
pub fn conformance(collective: &dyn Collective, device: tch::Device) -> Result<(), String> {
    let (rank, world) = (collective.rank(), collective.world());
    let told = |error: CollectiveError| error.to_string();
    // Longer than a bucket and no multiple of anything.
    let len = (1_i64 << 24) + 17;
    let options = (tch::Kind::Float, device);
    // Whole numbers so small that their sums are exact, in whatever order.
    let numbers = Tensor::arange(len, options).remainder(1000.0) + 1.0;
    let mut flat = &numbers + rank as f64;
    let expected = &numbers * world as f64 + (world * (world - 1) / 2) as f64;
    collective.all_reduce_sum(&mut flat).map_err(told)?;
    if flat != expected {
        let error = (&flat - &expected).abs().max().double_value(&[]);
        return Err(format!("all_reduce_sum is off by {error}"));
    }
    for root in 0..world {
        let mut flat = Tensor::full([len], rank as f64, options);
        collective.broadcast(&mut flat, root).map_err(told)?;
        if flat != Tensor::full([len], root as f64, options) {
            return Err(format!("broadcast from {root} did not arrive"));
        }
        let bytes = collective.broadcast_bytes(vec![rank as u8; rank * 7], root).map_err(told)?;
        if bytes != vec![root as u8; root * 7] {
            return Err(format!("broadcast_bytes from {root} did not arrive"));
        }
    }
    let mut mine = Tensor::full([2 * world as i64], rank as f64, options);
    let parts: Vec<Range<usize>> = (0..world).map(|rank| 2 * rank..2 * rank + 2).collect();
    collective.all_gather(&mut mine, &parts).map_err(told)?;
    if mine != Tensor::arange(2 * world as i64, options).floor_divide_scalar(2) {
        return Err("all_gather did not arrive".to_owned());
    }
    let ends = (world - 1) as f64;
    for (how, expected) in [(Reduction::Sum, ends * world as f64 / 2.0), (Reduction::Min, 0.0), (Reduction::Max, ends)]
    {
        let mut scalars = [rank as f64, 0.0];
        collective.all_reduce_scalars(&mut scalars, how).map_err(told)?;
        if scalars != [expected, 0.0] {
            return Err(format!("{how:?} gave {scalars:?}"));
        }
    }
    let failing = if rank + 1 == world { Err(Stop::Configuration("x".into())) } else { Ok(()) };
    match agree(collective, failing) {
        Err(stop) if stop.code() == exit::CONFIGURATION => {}
        other => return Err(format!("agree gave {other:?}")),
    }
    agree(collective, Ok(())).map_err(|stop| stop.to_string())?;
    if world > 1 && require_equal(collective, &[("rank", rank.to_string())]).is_ok() {
        return Err("require_equal let different facts pass".to_owned());
    }
    collective.barrier().map_err(told)
}
