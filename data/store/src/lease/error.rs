//! Errors of leases.

use std::io;

use thiserror::Error;

use super::holder::Holder;
use crate::error::StoreError;
use crate::file_lock::NO_LOCKS;

/// Reason why a lease is not available.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// Another process holds the lease.
    #[error("{url} is being written by {holder}; wait until it ends, stop it{}, or write elsewhere", holder.kill_hint())]
    Held {
        /// URL of the folder.
        url: String,
        /// Process that holds the lease.
        holder: Box<Holder>,
    },
    /// Another process has taken over or removed the lease.
    #[error(
        "{url} is now being written by {taker}; this process was suspended or cut off from the store for too long \
         and must not continue writing"
    )]
    Lost {
        /// URL of the folder.
        url: String,
        /// Process that holds the lease now, if known.
        taker: String,
    },
    /// The store ignores or rejects the conditions of conditional puts.
    #[error(
        "the store of {url} cannot keep two writers apart: {reason}; use a store with conditional puts, or set \
         run.lease=none (arinar-data: --no-lease) and make sure that nothing else writes there"
    )]
    NoConditions {
        /// URL of the folder.
        url: String,
        /// Behaviour of the store.
        reason: String,
    },
    /// The file system has no locks.
    #[error(
        "{url} cannot be locked ({source}): {NO_LOCKS}; use a folder on another file system, or set run.lease=none \
         (arinar-data: --no-lease) and make sure that nothing else writes there"
    )]
    NoLocks {
        /// Path of the folder.
        url: String,
        /// Error reported by the system.
        source: io::Error,
    },
    /// A foreign file has the name of the lease.
    #[error("{url} exists and is not a lease of this program; move it away or write elsewhere")]
    Foreign {
        /// URL of the file.
        url: String,
    },
    /// The store reported an error.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LeaseError {
    /// Whether the remedy is a changed command line, configuration or environment (exit code 78).
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Foreign { .. } | Self::NoConditions { .. } | Self::NoLocks { .. } => true,
            Self::Store(error) => error.is_configuration(),
            Self::Held { .. } | Self::Lost { .. } => false,
        }
    }

    /// Whether the same call may succeed later because the store is unreachable. A lease that another process holds is
    /// not a transient error.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}
