//! What can go wrong with a store, in one line each that names the object and the cure.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub(super) type Source = Box<dyn StdError + Send + Sync>;

/// What went wrong with a store; carries the URL of the object, never a secret.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The URL is not one of a known store.
    #[error("{url} is not a usable store URL ({source}); use a path, file://, s3://, gs:// or az://")]
    Url {
        /// The URL given, without credentials.
        url: String,
        /// What is wrong with it.
        source: Source,
    },
    /// Credentials or options of the cloud, in environment variables or files, are not usable.
    #[error("cannot use {url}: {reason}")]
    Setup {
        /// The store.
        url: String,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// No such object.
    #[error("{url} does not exist")]
    Missing {
        /// The object.
        url: String,
    },
    /// No such bucket or container.
    #[error("the bucket of {url} does not exist; create it, or correct the URL or the region")]
    NoBucket {
        /// The object.
        url: String,
    },
    /// No space left, or a quota used up.
    #[error("no space left while writing {url} ({source}); free some space and start again")]
    Full {
        /// The object.
        url: String,
        /// What the system said.
        source: io::Error,
    },
    /// The store refuses.
    #[error("access to {url} is denied ({source}); check credentials and permissions")]
    Denied {
        /// The object.
        url: String,
        /// What the store said.
        source: Source,
    },
    /// Temporary credentials have ended.
    #[error(
        "the credentials for {url} have expired ({source}); renew them in the profile file, \
         which is read again, or start again with new variables"
    )]
    Expired {
        /// The object.
        url: String,
        /// What the store said.
        source: Source,
    },
    /// The store does not answer, or fails in a way that passes, and went on so while it was tried again.
    #[error("{url} cannot be reached: {reason}")]
    Unavailable {
        /// The object.
        url: String,
        /// What the last attempt came to, and how many there were.
        reason: String,
    },
    /// An object is not as large as the reader knows it to be.
    #[error("{url} has {found} bytes and should have {expected}; it was replaced or is damaged")]
    Size {
        /// The object.
        url: String,
        /// Bytes expected.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// The local copy of an object cannot be written.
    #[error("cannot write the local copy of {url}: {source}")]
    Copy {
        /// The object.
        url: String,
        /// What the system said.
        source: io::Error,
    },
    /// A local file or folder cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The threads that talk to stores cannot be started.
    #[error("cannot start the threads that talk to stores: {0}")]
    Runtime(io::Error),
    /// Anything else: network, service, file system.
    #[error("{url}: {source}")]
    Other {
        /// The object.
        url: String,
        /// What the store said.
        source: Source,
    },
}

impl StoreError {
    /// Whether the object does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    /// Whether a changed command line, configuration or environment is the cure (exit code 78).
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Url { .. } | Self::Setup { .. } | Self::NoBucket { .. })
    }

    /// Whether the same call may succeed later with nothing changed here: the store is down, overloaded or out of
    /// reach, or temporary credentials have expired (somebody may renew them in the profile file, which is read again).
    ///
    /// The store has already tried again for a while before it says so. Refused access, a full disk, and an object that
    /// is missing or of another size are not transient.
    pub fn is_transient(&self) -> bool {
        let passing = |kind: io::ErrorKind| {
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
            Self::Unavailable { .. } | Self::Expired { .. } => true,
            // Network file systems fail in ways that pass, too.
            Self::File { source, .. } => passing(source.kind()),
            Self::Other { source, .. } => io_cause(source.as_ref()).is_some_and(|cause| passing(cause.kind())),
            _ => false,
        }
    }

    /// An error of a local file system.
    pub(super) fn of_folder(url: String, source: object_store::Error) -> Self {
        if let object_store::Error::NotFound { .. } = source {
            return Self::Missing { url };
        }
        let cause = io_cause(&source).map(|cause| (cause.kind(), io::Error::new(cause.kind(), cause.to_string())));
        match cause {
            Some((io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, source)) => Self::Full { url, source },
            Some((io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem, _)) => {
                Self::Denied { url, source: source.into() }
            }
            _ => Self::Other { url, source: source.into() },
        }
    }
}

/// The input/output error behind an error, if there is one.
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
    fn a_full_disk_is_told_apart() {
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
