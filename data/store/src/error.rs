//! Errors of stores. Each message is one line that names the object and the remedy.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use arinar_place::PlaceError;
use thiserror::Error;

use crate::file_lock;

pub(super) type Source = Box<dyn StdError + Send + Sync>;

/// An error of a store. It contains the URL of the object, but no secrets.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The text does not name a place.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The name of an object cannot be used.
    #[error("{url} is not a usable name ({source}); choose another one")]
    Name {
        /// URL of the object.
        url: String,
        /// Description of the problem.
        source: Source,
    },
    /// The credentials or options of the cloud, in environment variables or files, cannot be used.
    #[error("cannot use {url}: {reason}")]
    Setup {
        /// URL of the store.
        url: String,
        /// Description of the problem and the remedy.
        reason: String,
    },
    /// The object does not exist.
    #[error("{url} does not exist")]
    Missing {
        /// URL of the object.
        url: String,
    },
    /// The bucket or container does not exist.
    #[error("the bucket of {url} does not exist; create it, or correct the URL or the region")]
    NoBucket {
        /// URL of the object.
        url: String,
    },
    /// There is no space left, or a quota is exhausted.
    #[error("no space left while writing {url} ({source}); free some space and start again")]
    Full {
        /// URL of the object.
        url: String,
        /// Error reported by the system.
        source: io::Error,
    },
    /// The store denies access.
    #[error("access to {url} is denied ({source}); {remedy}")]
    Denied {
        /// URL of the object.
        url: String,
        /// Error reported by the store.
        source: Source,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The store refuses requests because the clock of this machine is wrong.
    #[error("the clocks of this machine and of the store of {url} differ ({source}); set the clock of this machine")]
    Clock {
        /// URL of the object.
        url: String,
        /// Error reported by the store.
        source: Source,
    },
    /// The bucket is in another region than the one in the request.
    #[error(
        "the bucket of {url} is in another region ({source}); set AWS_REGION, or region in the profile, to the region of \
         the bucket"
    )]
    Region {
        /// URL of the object.
        url: String,
        /// Error reported by the store.
        source: Source,
    },
    /// The store does not have the operation.
    #[error("the store of {url} does not support the request ({source}); use another store")]
    Unsupported {
        /// URL of the object.
        url: String,
        /// Error reported by the store.
        source: Source,
    },
    /// The temporary credentials have expired.
    #[error(
        "the credentials for {url} have expired ({source}); renew them in the profile file, \
         which is reread, or restart with new environment variables"
    )]
    Expired {
        /// URL of the object.
        url: String,
        /// Error reported by the store.
        source: Source,
    },
    /// The store does not answer or fails temporarily, and all retries have failed.
    #[error("{url} cannot be reached: {reason}")]
    Unavailable {
        /// URL of the object.
        url: String,
        /// Failure of the last attempt, and the number of attempts.
        reason: String,
    },
    /// The size of an object differs from the expected size.
    #[error("{url} has {found} bytes and should have {expected}; it was replaced or is damaged")]
    Size {
        /// URL of the object.
        url: String,
        /// Expected size in bytes.
        expected: u64,
        /// Actual size in bytes.
        found: u64,
    },
    /// The local copy of an object cannot be written.
    #[error("cannot write the local copy of {url}: {source}")]
    Copy {
        /// URL of the object.
        url: String,
        /// Error reported by the system.
        source: io::Error,
    },
    /// A local file or folder cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error reported by the system.
        source: io::Error,
    },
    /// The threads that send requests cannot be started.
    #[error("cannot start the threads that send requests to stores: {0}")]
    Runtime(io::Error),
    /// Any other error of the network, the service or the file system.
    #[error("{url}: {source}")]
    Other {
        /// URL of the object.
        url: String,
        /// Error reported by the store.
        source: Source,
    },
}

impl StoreError {
    /// Whether the object does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    /// Whether the remedy is a changed command line, configuration or environment (exit code 78).
    ///
    /// Expired credentials and a wrong clock are also transient: an operation in the background repeats the request,
    /// and a program that starts reports them.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Place(_) | Self::Name { .. } | Self::Setup { .. } | Self::NoBucket { .. } => true,
            Self::Denied { .. } | Self::Expired { .. } | Self::Clock { .. } | Self::Region { .. } => true,
            Self::Unsupported { .. } => true,
            Self::File { source, .. } | Self::Copy { source, .. } => is_wrong_folder(source),
            _ => false,
        }
    }

    /// Whether the same call may succeed later: the store is down, overloaded or unreachable, or temporary credentials
    /// have expired, which may be renewed in the profile file.
    ///
    /// Such an error is returned only after retries, except for credentials and clocks. Denied access, a full disk, and
    /// a missing object or one with another size are not transient.
    pub fn is_transient(&self) -> bool {
        let is_temporary = |kind: io::ErrorKind| {
            use io::ErrorKind::*;
            matches!(
                kind,
                TimedOut
                    | Interrupted
                    | WouldBlock
                    | ConnectionReset
                    | ConnectionAborted
                    | ConnectionRefused
                    | NotConnected
                    | HostUnreachable
                    | NetworkUnreachable
                    | NetworkDown
                    | StaleNetworkFileHandle
            )
        };
        match self {
            Self::Unavailable { .. } | Self::Expired { .. } | Self::Clock { .. } => true,
            // Network file systems fail temporarily, too.
            Self::File { source, .. } => is_temporary(source.kind()),
            Self::Other { source, .. } => io_cause(source.as_ref()).is_some_and(|cause| is_temporary(cause.kind())),
            _ => false,
        }
    }

    /// Converts an error of a local file system.
    pub(super) fn of_folder(url: String, source: object_store::Error) -> Self {
        if let object_store::Error::NotFound { .. } = source {
            return Self::Missing { url };
        }
        let cause = io_cause(&source).map(|cause| (cause.kind(), io::Error::new(cause.kind(), cause.to_string())));
        match cause {
            Some((io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, source)) => Self::Full { url, source },
            Some((kind, source)) if is_denial(kind) => {
                let remedy = "change the permissions of the folder or of its mount, or use another folder";
                Self::Denied { url, source: source.into(), remedy }
            }
            _ => Self::Other { url, source: source.into() },
        }
    }
}

fn is_denial(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// Whether an error of the file system has a remedy that only the user can apply: other permissions, or another folder
/// in the configuration or on the command line (exit code 78).
pub fn is_wrong_folder(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, IsADirectory, NotADirectory, NotFound};
    let kind = error.kind();
    is_denial(kind)
        || matches!(kind, NotFound | NotADirectory | IsADirectory | InvalidFilename)
        || file_lock::is_unsupported(error)
}

/// Returns the I/O error among the causes of an error, if there is one.
fn io_cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_recognized() {
        let cause = io::Error::from(io::ErrorKind::StorageFull);
        let source = object_store::Error::Generic { store: "test", source: Box::new(cause) };
        let error = StoreError::of_folder("/somewhere/x".to_owned(), source);
        assert!(matches!(error, StoreError::Full { .. }), "{error}");
        assert!(!error.is_transient());
    }

    #[test]
    fn a_network_folder_out_of_reach_is_transient() {
        let cause = io::Error::from(io::ErrorKind::StaleNetworkFileHandle);
        let source = object_store::Error::Generic { store: "test", source: Box::new(cause) };
        assert!(StoreError::of_folder("/nfs/x".to_owned(), source).is_transient());
    }
}
