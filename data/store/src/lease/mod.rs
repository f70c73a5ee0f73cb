//! Leases: one writer for a dataset or run, and a clear word to the second.
//!
//! In a **folder** the writer holds a lock of the kernel (flock) on `writer.lock`; it ends with the process, however
//! that ends. In a **cloud** it keeps `writer.json`, made by a conditional put and renewed all the time. Clocks of
//! different machines are never compared: whoever wants the lease watches that object, and takes it over when it has
//! not changed for [`TIME_TO_LIVE`] by its own clock, or at once when the holder was a process of the same machine
//! that is dead.
//!
//! A writer that was stopped or cut off for longer than that has lost its lease without noticing. So it asks
//! [`Lease::check`] before it commits, that is, before it writes a manifest.

mod cloud;
mod folder;
mod holder;

use std::time::Duration;

use thiserror::Error;

use crate::{Place, Store, StoreError};
pub use holder::Holder;

/// A lease in a cloud that is not renewed for so long may be taken over.
pub const TIME_TO_LIVE: Duration = Duration::from_secs(30);

/// Why there is no lease.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// Somebody else is writing.
    #[error("{url} is being written by {holder}; wait until that has ended, end it{}, or write elsewhere", holder.how_to_end())]
    Held {
        /// URL of the folder.
        url: String,
        /// Who.
        holder: Box<Holder>,
    },
    /// Somebody else has taken over, or removed the lease.
    #[error(
        "{url} is now being written by {taker}; this process was stopped or cut off from the store for too long and \
         must not go on writing"
    )]
    Lost {
        /// URL of the folder.
        url: String,
        /// Who, as far as it is known.
        taker: String,
    },
    /// A file of something else has the name of the lease.
    #[error("{url} exists and is not a lease of this program; move it away or write elsewhere")]
    Foreign {
        /// URL of the file.
        url: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LeaseError {
    /// Whether the same call may succeed later: the store is out of reach. A lease that somebody holds or took is not.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}

/// The right to write below a store's URL; given back when dropped.
#[derive(Debug)]
pub struct Lease(Kind);

#[derive(Debug)]
enum Kind {
    Folder(folder::FolderLease),
    Cloud(cloud::CloudLease),
}

impl Lease {
    /// Gets the lease for the store's folder. `purpose` tells other people what holds it, as "arinar-data encode".
    ///
    /// Returns at once in a folder, and in a cloud if nobody holds it or if the holder is a process of this machine.
    /// Otherwise it takes up to [`TIME_TO_LIVE`] to see whether the holder lives.
    ///
    /// # Errors
    /// [`LeaseError::Held`] says who holds it.
    pub fn acquire(store: &Store, purpose: &str) -> Result<Self, LeaseError> {
        Self::acquire_for(store, purpose, TIME_TO_LIVE)
    }

    /// [`Self::acquire`] with another time to live, for tests: all writers of a store must go by the same.
    #[doc(hidden)]
    pub fn acquire_for(store: &Store, purpose: &str, time_to_live: Duration) -> Result<Self, LeaseError> {
        let me = Holder::this_process(purpose);
        Ok(Self(match &store.place {
            Place::Folder(place) => Kind::Folder(folder::FolderLease::acquire(store.url(), &place.path, &me)?),
            Place::Cloud(_) => Kind::Cloud(cloud::CloudLease::acquire(store, me, time_to_live)?),
        }))
    }

    /// Whether [`Self::acquire`] would find somebody who holds the lease. Nothing is taken, changed or left behind, and
    /// nobody who acquires it meanwhile is disturbed. As there, a holder elsewhere may take [`TIME_TO_LIVE`].
    ///
    /// # Errors
    /// [`LeaseError::Held`] says who holds it.
    pub fn look(store: &Store) -> Result<(), LeaseError> {
        Self::look_for(store, TIME_TO_LIVE)
    }

    /// [`Self::look`] with another time to live, for tests.
    #[doc(hidden)]
    pub fn look_for(store: &Store, time_to_live: Duration) -> Result<(), LeaseError> {
        let holder = match &store.place {
            Place::Folder(place) => folder::holder(&place.path)?,
            Place::Cloud(_) => cloud::holder(store, time_to_live)?,
        };
        match holder {
            None => Ok(()),
            Some(holder) => Err(LeaseError::Held { url: store.url().to_owned(), holder: Box::new(holder) }),
        }
    }

    /// Asks the store whether this process still has the lease; to be called before a commit.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] if not; [`LeaseError::Store`] if the store does not answer, which says nothing about it.
    pub fn check(&self) -> Result<(), LeaseError> {
        match &self.0 {
            Kind::Folder(lease) => lease.check(),
            Kind::Cloud(lease) => lease.check(),
        }
    }
}
