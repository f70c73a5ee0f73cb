//! The few things encoding needs of ranks: who am I, collect messages on rank 0, hear its decision.
//!
//! MPI is started only in a process that mpirun or a launcher speaking PMIx started; a process started by hand
//! is one rank alone and never touches MPI.

use std::time::Duration;

use mpi::environment::Universe;
use mpi::point_to_point::{Message, Status};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, MatchedReceiveVec, Root, Source};
use thiserror::Error;

const PROGRESS_TAG: i32 = 1;
const RESULT_TAG: i32 = 2;
/// How often rank 0 looks for messages while it waits for the others.
const POLL: Duration = Duration::from_millis(20);

/// The rank this process was started as, 0 when it was started by hand. MPI need not run.
pub fn launched_rank() -> usize {
    let number = |name: &&str| std::env::var(name).ok()?.parse().ok();
    ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"].iter().find_map(number).unwrap_or(0)
}

/// MPI does not start.
#[derive(Debug, Error)]
#[error("MPI does not start: it is running already in this process")]
pub struct RanksError;

/// This process among those that work together.
pub struct Ranks {
    rank: usize,
    world: usize,
    local_rank: usize,
    local_world: usize,
    communicator: Option<SimpleCommunicator>,
    // Dropped last: it ends MPI, which waits for every rank.
    _universe: Option<Universe>,
}

impl Ranks {
    /// One rank alone, without MPI.
    pub fn single() -> Self {
        Self { rank: 0, world: 1, local_rank: 0, local_world: 1, communicator: None, _universe: None }
    }

    /// Starts MPI if this process was started by mpirun or a launcher speaking PMIx or PMI.
    ///
    /// # Errors
    /// When MPI is running already.
    pub fn from_environment() -> Result<Self, RanksError> {
        let launched = ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"];
        if !launched.iter().any(|name| std::env::var_os(name).is_some()) {
            return Ok(Self::single());
        }
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled).ok_or(RanksError)?;
        let communicator = universe.world();
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        Ok(Self {
            rank: communicator.rank() as usize,
            world: communicator.size() as usize,
            local_rank: number("OMPI_COMM_WORLD_LOCAL_RANK").or_else(|| number("SLURM_LOCALID")).unwrap_or(0),
            local_world: number("OMPI_COMM_WORLD_LOCAL_SIZE").unwrap_or(1).max(1),
            communicator: Some(communicator),
            _universe: Some(universe),
        })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.world
    }

    /// This rank among those of its machine.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Ranks on this machine.
    pub fn local_world(&self) -> usize {
        self.local_world
    }

    /// Tells rank 0 that `count` more pieces of work are done. Rank 0 itself counts its own.
    pub fn report(&self, count: u64) {
        if let Some(communicator) = self.communicator.as_ref().filter(|_| self.rank != 0) {
            communicator.process_at_rank(0).send_with_tag(&count, PROGRESS_TAG);
        }
    }

    /// What the other ranks have reported since the last call; on rank 0.
    pub fn reported(&self) -> u64 {
        let mut count = 0;
        while let Some(message) = self.probe(PROGRESS_TAG) {
            count += message.matched_receive_vec::<u64>().0.iter().sum::<u64>();
        }
        count
    }

    /// Collects one message of every rank on rank 0, in the order of the ranks; the others get None. While it waits,
    /// rank 0 passes reported progress to `on_progress`.
    pub fn gather(&self, message: &[u8], mut on_progress: impl FnMut(u64)) -> Option<Vec<Vec<u8>>> {
        let Some(communicator) = &self.communicator else {
            return Some(vec![message.to_vec()]);
        };
        if self.rank != 0 {
            communicator.process_at_rank(0).send_with_tag(message, RESULT_TAG);
            return None;
        }
        let mut messages = vec![None; self.world];
        messages[0] = Some(message.to_vec());
        while messages.iter().any(Option::is_none) {
            on_progress(self.reported());
            match self.probe(RESULT_TAG) {
                Some(message) => {
                    let (message, status) = message.matched_receive_vec::<u8>();
                    messages[status.source_rank() as usize] = Some(message);
                }
                None => std::thread::sleep(POLL),
            }
        }
        Some(messages.into_iter().flatten().collect())
    }

    /// Gives every rank the value of rank 0.
    pub fn broadcast(&self, value: u8) -> u8 {
        let mut value = value;
        if let Some(communicator) = &self.communicator {
            communicator.process_at_rank(0).broadcast_into(&mut value);
        }
        value
    }

    fn probe(&self, tag: i32) -> Option<(Message, Status)> {
        self.communicator.as_ref()?.any_process().immediate_matched_probe_with_tag(tag)
    }
}
