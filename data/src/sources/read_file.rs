//! Reading of one input file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use thiserror::Error;

use super::folder::describe_special;

/// Largest file that is read. It bounds the memory that a wrong file can occupy.
const MAX_BYTES: u64 = 1 << 30;

/// Reason why an input file cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The system reported an error.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The file is of a kind that cannot be read.
    #[error("{0}")]
    Kind(String),
    /// The file is too large to be a picture.
    #[error("has {bytes} bytes; files of more than {MAX_BYTES} bytes are not read")]
    TooLarge {
        /// Size of the file.
        bytes: u64,
    },
}

/// Reads a regular file. A named pipe or device, which could block, is an error.
pub(super) fn read_regular(path: &Path) -> Result<Vec<u8>, ReadError> {
    let nonblocking = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadError::Kind(match metadata.is_dir() {
            true => "is a folder".to_owned(),
            false => describe_special(metadata.file_type()).to_owned(),
        }));
    }
    check_size(metadata.len())?;
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    // The file may grow while it is read.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    check_size(bytes.len() as u64)?;
    Ok(bytes)
}

/// Reads a part of a tar file.
pub(super) fn read_span(file: &File, offset: u64, length: u64) -> Result<Vec<u8>, ReadError> {
    check_size(length)?;
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn check_size(bytes: u64) -> Result<(), ReadError> {
    if bytes > MAX_BYTES { Err(ReadError::TooLarge { bytes }) } else { Ok(()) }
}
