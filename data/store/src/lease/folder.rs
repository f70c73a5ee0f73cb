//! Leases of local folders: kernel locks on a file that names the holder.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::LeaseError;
use super::holder::Holder;
use crate::error::StoreError;
use crate::file_lock;
use crate::plain_file::nofollow;

const LOCK_NAME: &str = "writer.lock";
/// Maximum size of a lease in bytes.
const MAX_BYTES: u64 = 1 << 16;
/// Maximum number of attempts. The file may disappear between opening and locking it because its holder ends.
const MAX_ATTEMPTS: usize = 100;

#[derive(Debug)]
pub(super) struct FolderLease {
    url: String,
    path: PathBuf,
    /// Locked while it is open.
    file: File,
}

impl FolderLease {
    pub(super) fn acquire(url: &str, folder: &Path, me: &Holder) -> Result<Self, LeaseError> {
        let path = folder.join(LOCK_NAME);
        let failed = |source| LeaseError::from(StoreError::File { path: path.clone(), source });
        std::fs::create_dir_all(folder).map_err(failed)?;
        for _ in 0..MAX_ATTEMPTS {
            let mut options = File::options();
            let options = options.read(true).write(true).create(true).truncate(false);
            let mut file = nofollow(options).open(&path).map_err(failed)?;
            match file_lock::try_lock(&file) {
                Ok(true) => {}
                Ok(false) => match read_holder(&mut file) {
                    Some(holder) => return Err(LeaseError::Held { url: url.to_owned(), holder: Box::new(holder) }),
                    // The holder has not written the file yet, or is about to delete it.
                    None => {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        continue;
                    }
                },
                Err(error) => {
                    // Nothing protects the file: it may be of this start, or of another program.
                    if file.metadata().is_ok_and(|facts| facts.len() == 0) {
                        let _ = std::fs::remove_file(&path);
                    }
                    return Err(lock_error(folder, &path, error));
                }
            }
            if !is_at(&file, &path) {
                continue;
            }
            if !is_lease(&mut file).map_err(failed)? {
                return Err(LeaseError::Foreign { url: path.display().to_string() });
            }
            file.set_len(0).and_then(|()| file.write_all(&me.text())).map_err(failed)?;
            return Ok(Self { url: url.to_owned(), path, file });
        }
        Err(failed(io::Error::other("another process holds the lock without identifying itself; try again")))
    }

    /// The kernel holds the lock. Another writer can acquire it only after the file was deleted.
    pub(super) fn check(&self) -> Result<(), LeaseError> {
        if is_at(&self.file, &self.path) {
            return Ok(());
        }
        let taker = File::open(&self.path).ok().and_then(|mut file| read_holder(&mut file));
        let taker = taker
            .map_or_else(|| format!("an unknown process ({} was removed)", self.path.display()), |it| it.to_string());
        Err(LeaseError::Lost { url: self.url.clone(), taker })
    }
}

impl Drop for FolderLease {
    /// Removes the file while it is locked. Closing the file then releases the lock.
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Returns the holder of the lease of a folder.
pub(super) fn holder(folder: &Path) -> Result<Option<Holder>, LeaseError> {
    let path = folder.join(LOCK_NAME);
    let failed = |source| LeaseError::from(StoreError::File { path: path.clone(), source });
    let mut file = match File::open(&path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        file => file.map_err(failed)?,
    };
    if !is_lease(&mut file).map_err(failed)? {
        return Err(LeaseError::Foreign { url: path.display().to_string() });
    }
    match read_holder(&mut file) {
        // A live holder has the lock. Trying to lock the file could disturb a process that is acquiring it.
        Some(holder) if holder.is_here() => Ok(Some(holder).filter(|holder| !holder.is_dead_here())),
        holder => match file_lock::try_lock_shared(&file) {
            Ok(true) => Ok(None),
            Ok(false) if holder.is_some() => Ok(holder),
            Ok(false) => Err(failed(io::Error::other("another process holds the lock without identifying itself"))),
            Err(error) => Err(lock_error(folder, &path, error)),
        },
    }
}

/// Checks that a lease in the folder, or in the nearest folder above it that exists, can be locked. A folder that cannot
/// be written to is not checked, because acquiring the lease reports that.
pub(super) fn check_locks(folder: &Path) -> Result<(), LeaseError> {
    let Some(nearest) = folder.ancestors().find(|folder| folder.is_dir()) else { return Ok(()) };
    match file_lock::probe(nearest) {
        Err(error) if file_lock::is_unsupported(&error) => Err(lock_error(folder, nearest, error)),
        _ => Ok(()),
    }
}

fn lock_error(folder: &Path, path: &Path, source: io::Error) -> LeaseError {
    if file_lock::is_unsupported(&source) {
        return LeaseError::NoLocks { url: folder.display().to_string(), source };
    }
    StoreError::File { path: path.to_path_buf(), source }.into()
}

/// Whether the file is a lease, or empty because its holder was killed before writing it. A foreign file with the same
/// name must be preserved.
fn is_lease(file: &mut File) -> io::Result<bool> {
    let mut text = Vec::new();
    file.rewind()?;
    file.take(MAX_BYTES).read_to_end(&mut text)?;
    file.rewind()?;
    // A crash of the machine may leave zeros.
    Ok(text.iter().all(|&byte| byte == 0) || Holder::parse(&text).is_some())
}

/// Whether the open file is the file at the path.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(mine), Ok(there)) => (mine.dev(), mine.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn read_holder(file: &mut File) -> Option<Holder> {
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    Holder::parse(&text)
}
