//! One object by its own URL: a file that a user names on a command line, wherever it lies.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Store, StoreError};

/// Bytes fetched at a time.
const PIECE: u64 = 64 << 20;

/// Splits the URL of an object into the store of its folder and its name there.
///
/// # Errors
/// [`StoreError::Url`] when it names no object or no known store.
pub fn open_object(url: &str) -> Result<(Store, String), StoreError> {
    let (folder, name) = match url.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((folder, name)) => (folder, name),
        None => (".", url),
    };
    if name.is_empty() {
        return Err(StoreError::Url { url: url.to_owned(), source: "it names a folder, not a file".into() });
    }
    Ok((Store::open(folder)?, name.to_owned()))
}

/// An object as a file of this machine.
#[derive(Debug)]
pub enum LocalCopy {
    /// It is one already.
    InPlace(PathBuf),
    /// It was fetched; deleted when this is dropped.
    Fetched(NamedTempFile),
}

impl LocalCopy {
    /// Fetches the object at `url` unless it lies on this machine, a piece at a time.
    ///
    /// # Errors
    /// The store's, or [`StoreError::File`] when the temporary folder has no room.
    pub fn of(url: &str) -> Result<Self, StoreError> {
        let (store, name) = open_object(url)?;
        if let Some(path) = store.local_path(&name) {
            return Ok(Self::InPlace(path));
        }
        let Some(bytes) = store.size(&name)? else { return Err(StoreError::Missing { url: url.to_owned() }) };
        let folder = std::env::temp_dir();
        let failed = |source: io::Error| StoreError::File { path: folder.clone(), source };
        let mut file = NamedTempFile::new_in(&folder).map_err(failed)?;
        for offset in (0..bytes).step_by(PIECE as usize) {
            let piece = store.get_range(&name, offset, PIECE.min(bytes - offset))?;
            file.write_all(&piece).map_err(failed)?;
        }
        file.flush().map_err(failed)?;
        Ok(Self::Fetched(file))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        match self {
            Self::InPlace(path) => path,
            Self::Fetched(file) => file.path(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_folder_and_a_name() {
        let parts = |url: &str| open_object(url).map(|(store, name)| (store.url().to_owned(), name)).expect("object");
        assert_eq!(parts("/a/b.pth"), ("/a".to_owned(), "b.pth".to_owned()));
        assert_eq!(parts("file:///a/b/c"), ("/a/b".to_owned(), "c".to_owned()));
        assert_eq!(parts("/b.pth"), ("/".to_owned(), "b.pth".to_owned()));
        assert!(parts("b.pth").0.starts_with('/'));
        assert!(open_object("/a/b/").is_err());
    }
}
