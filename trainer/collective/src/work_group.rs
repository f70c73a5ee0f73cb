//! Ranks that share independent pieces of work: rank 0 collects progress and results from the others.
//!
//! MPI is started only in a process that was started by mpirun or a launcher that speaks PMIx. A process that was started
//! by hand is the only rank and never uses MPI.

use std::time::Duration;

use mpi::environment::Universe;
use mpi::point_to_point::{Message, Status};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, MatchedReceiveVec, Root, Source};
use thiserror::Error;

use crate::launch::{LaunchEnvironment, launched_rank};

const PROGRESS_TAG: i32 = 1;
const RESULT_TAG: i32 = 2;
/// Time between two polls for messages while rank 0 waits for the others.
const POLL: Duration = Duration::from_millis(20);

/// MPI cannot be initialized.
#[derive(Debug, Error)]
#[error("MPI does not start: it is running already in this process")]
pub struct WorkGroupError;

/// One process of a group that shares independent pieces of work.
pub struct WorkGroup {
    launch: LaunchEnvironment,
    communicator: Option<SimpleCommunicator>,
    // Dropped last: it finalizes MPI, which waits for every rank.
    _universe: Option<Universe>,
}

impl WorkGroup {
    /// Creates a group of one process without MPI.
    pub fn single() -> Self {
        Self { launch: LaunchEnvironment::single(), communicator: None, _universe: None }
    }

    /// Starts MPI if this process was started by mpirun or a launcher that speaks PMIx or PMI; otherwise returns a group of
    /// one process.
    ///
    /// # Errors
    /// Returns an error if MPI is already running.
    pub fn from_environment() -> Result<Self, WorkGroupError> {
        if launched_rank().is_none() {
            return Ok(Self::single());
        }
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled).ok_or(WorkGroupError)?;
        let communicator = universe.world();
        let (rank, world_size) = (communicator.rank() as usize, communicator.size() as usize);
        let (local_rank, local_world_size) =
            LaunchEnvironment::from_environment().map_or((0, 1), |launch| (launch.local_rank, launch.local_world_size));
        let launch = LaunchEnvironment { rank, world_size, local_rank, local_world_size };
        Ok(Self { launch, communicator: Some(communicator), _universe: Some(universe) })
    }

    /// Returns this rank, counted from 0.
    pub fn rank(&self) -> usize {
        self.launch.rank
    }

    /// Returns the number of ranks.
    pub fn world_size(&self) -> usize {
        self.launch.world_size
    }

    /// Returns the rank of this process among those on its node.
    pub fn local_rank(&self) -> usize {
        self.launch.local_rank
    }

    /// Returns the number of ranks on this node.
    pub fn local_world_size(&self) -> usize {
        self.launch.local_world_size
    }

    /// Reports to rank 0 that `count` more pieces of work are done. Rank 0 counts its own work itself.
    pub fn report(&self, count: u64) {
        if let Some(communicator) = self.communicator.as_ref().filter(|_| self.rank() != 0) {
            communicator.process_at_rank(0).send_with_tag(&count, PROGRESS_TAG);
        }
    }

    /// Returns the pieces of work that other ranks have reported since the last call. Called by rank 0.
    pub fn reported(&self) -> u64 {
        let mut count = 0;
        while let Some(message) = self.probe(PROGRESS_TAG) {
            count += message.matched_receive_vec::<u64>().0.iter().sum::<u64>();
        }
        count
    }

    /// Collects one message of every rank on rank 0, in rank order; the other ranks receive `None`. While it waits, rank 0
    /// passes reported progress to `on_progress`.
    pub fn gather(&self, message: &[u8], mut on_progress: impl FnMut(u64)) -> Option<Vec<Vec<u8>>> {
        let Some(communicator) = &self.communicator else {
            return Some(vec![message.to_vec()]);
        };
        if self.rank() != 0 {
            communicator.process_at_rank(0).send_with_tag(message, RESULT_TAG);
            return None;
        }
        let mut messages = vec![None; self.world_size()];
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

    /// Returns the value of rank 0 on every rank.
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
