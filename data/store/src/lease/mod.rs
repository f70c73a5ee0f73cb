//! Leases, which ensure that a dataset or run has a single writer.
//!
//! In a **folder**, the writer holds a flock lock of the kernel on `writer.lock`, which ends with its process. In a
//! **cloud**, it creates `writer.json` with a conditional put and renews it continually. Clocks of different machines
//! are never compared: another process takes over the lease if that object has not changed for [`TIME_TO_LIVE`] by its
//! own clock, or immediately if the holder was a process of the same machine that has ended.
//!
//! A writer that was suspended or disconnected for longer has lost its lease without noticing. Therefore it must call
//! [`Lease::check`] before each commit, that is, before it writes a manifest.

mod cloud;
mod conditions;
mod error;
mod folder;
mod holder;

use std::time::Duration;

use crate::store::{Backend, Store};
pub use error::LeaseError;
pub use holder::Holder;

/// Time after which a lease in a cloud that was not renewed may be taken over.
pub const TIME_TO_LIVE: Duration = Duration::from_secs(30);

/// The exclusive right to write to a store, which is released on drop.
#[derive(Debug)]
pub struct Lease(Kind);

#[derive(Debug)]
enum Kind {
    /// Excludes nobody.
    None,
    Folder(folder::FolderLease),
    Cloud(cloud::CloudLease),
}

impl Lease {
    /// Acquires the lease of a store. `purpose` describes the holder in messages, for example "arinar-data encode".
    ///
    /// First checks that the store can keep two writers apart. Returns immediately in a folder, and in a cloud if no process holds the lease or if the holder is on this
    /// machine. Otherwise it waits up to [`TIME_TO_LIVE`] to find out whether the holder is alive.
    ///
    /// # Errors
    /// Returns [`LeaseError::Held`], which names the holder, if another process holds the lease, and
    /// [`LeaseError::NoConditions`] or [`LeaseError::NoLocks`] if the store cannot keep two writers apart.
    pub fn acquire(store: &Store, purpose: &str) -> Result<Self, LeaseError> {
        Self::acquire_for(store, purpose, TIME_TO_LIVE)
    }

    /// Returns a lease that excludes no other writer and writes nothing to the store. It is for stores and file systems
    /// that cannot keep two writers apart; the user must make sure that there is only one.
    pub fn without_exclusion() -> Self {
        Self(Kind::None)
    }

    /// Acquires a lease with another time to live, for tests. All writers of a store must use the same.
    #[doc(hidden)]
    pub fn acquire_for(store: &Store, purpose: &str, time_to_live: Duration) -> Result<Self, LeaseError> {
        let me = Holder::this_process(purpose);
        Ok(Self(match &store.backend {
            Backend::Folder(folder) => Kind::Folder(folder::FolderLease::acquire(store.url(), &folder.path, &me)?),
            Backend::Cloud(_) => {
                conditions::check(store)?;
                Kind::Cloud(cloud::CloudLease::acquire(store, me, time_to_live)?)
            }
        }))
    }

    /// Checks that no process holds the lease and that the store can keep two writers apart, without acquiring the
    /// lease. Nothing is left behind, and concurrent calls of [`Self::acquire`] are not affected. Like
    /// [`Self::acquire`], it may wait up to [`TIME_TO_LIVE`].
    ///
    /// # Errors
    /// Returns the errors of [`Self::acquire`].
    pub fn probe(store: &Store) -> Result<(), LeaseError> {
        Self::probe_for(store, TIME_TO_LIVE)
    }

    /// Probes with another time to live, for tests.
    #[doc(hidden)]
    pub fn probe_for(store: &Store, time_to_live: Duration) -> Result<(), LeaseError> {
        let holder = match &store.backend {
            Backend::Folder(folder) => {
                folder::check_locks(&folder.path)?;
                folder::holder(&folder.path)?
            }
            Backend::Cloud(_) => {
                conditions::check(store)?;
                cloud::holder(store, time_to_live)?
            }
        };
        match holder {
            None => Ok(()),
            Some(holder) => Err(LeaseError::Held { url: store.url().to_owned(), holder: Box::new(holder) }),
        }
    }

    /// Checks that this process still holds the lease. Must be called before each commit.
    ///
    /// # Errors
    /// Returns [`LeaseError::Lost`] if it does not, and [`LeaseError::Store`] if the store does not answer, in which
    /// case the lease may still be held.
    pub fn check(&self) -> Result<(), LeaseError> {
        match &self.0 {
            Kind::None => Ok(()),
            Kind::Folder(lease) => lease.check(),
            Kind::Cloud(lease) => lease.check(),
        }
    }
}
