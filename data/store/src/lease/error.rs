//! Errors of leases.

use thiserror::Error;

use super::holder::Holder;
use crate::error::StoreError;

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
    /// Whether the same call may succeed later because the store is unreachable. A lease that another process holds is
    /// not a transient error.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}
