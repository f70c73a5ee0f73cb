//! Locks of the kernel on files, which some file systems do not have.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// What to do about a file system without locks, for messages.
pub const NO_LOCKS: &str = "the file system has no file locks (mount Lustre with -o flock, NFS with a lock service)";

/// Tries to lock a file exclusively. Returns whether the lock was acquired.
///
/// # Errors
/// Returns the error of the system; see [`is_unsupported`].
pub fn try_lock(file: &File) -> io::Result<bool> {
    acquired(file.try_lock())
}

/// Tries to lock a file together with other readers. Returns whether the lock was acquired.
///
/// # Errors
/// Returns the error of the system; see [`is_unsupported`].
pub fn try_lock_shared(file: &File) -> io::Result<bool> {
    acquired(file.try_lock_shared())
}

fn acquired(result: Result<(), TryLockError>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether an error of a lock means that the file system has no locks.
pub fn is_unsupported(error: &io::Error) -> bool {
    let codes = [Errno::NOLCK, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTSUP];
    Errno::from_io_error(error).is_some_and(|code| codes.contains(&code))
}

/// Checks that files in an existing folder can be locked, with an unnamed file that the system deletes.
///
/// # Errors
/// Returns the error of the system.
pub fn probe(folder: &Path) -> io::Result<()> {
    try_lock(&tempfile::tempfile_in(folder)?).map(drop)
}
