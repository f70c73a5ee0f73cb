//! The stages of a shutdown.

use std::time::{Duration, Instant};

/// On SIGTERM, mpirun kills its ranks after a second, including those on other hosts. After this time, it is killed itself.
pub(super) const MPIRUN_GRACE: Duration = Duration::from_secs(5);

/// The stage of a job's shutdown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shutdown {
    /// The job is not shutting down.
    None,
    /// Ranks exit by themselves, because of a request or because a rank has ended. After this time, they are killed.
    Grace(Instant),
    /// mpirun is killing the ranks. After this time, it is killed itself.
    Terminating(Instant),
    /// mpirun has been killed.
    Killed,
}

impl Shutdown {
    /// Returns true once the ranks are being killed.
    pub(super) fn is_forced(self) -> bool {
        matches!(self, Self::Terminating(_) | Self::Killed)
    }

    /// Returns true if the time of the stage is over.
    pub(super) fn is_due(self, now: Instant) -> bool {
        match self {
            Self::Grace(deadline) | Self::Terminating(deadline) => now >= deadline,
            Self::None | Self::Killed => false,
        }
    }
}
