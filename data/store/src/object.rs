//! Single objects named by their own URL, such as files on a command line.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arinar_place::split_file;
use tempfile::NamedTempFile;

use crate::environment::Environment;
use crate::error::StoreError;
use crate::store::Store;

/// Number of bytes to download at a time.
const CHUNK: u64 = 64 << 20;

/// Splits the URL of an object into the store of its folder and its name.
///
/// # Errors
/// Returns [`StoreError::Place`] if the URL names a folder or is not a usable place.
pub fn open_object(url: &str) -> Result<(Store, String), StoreError> {
    let (folder, name) = split_file(url)?;
    Ok((Store::open_place(folder, &Environment::from_process())?, name))
}

/// An object as a local file.
#[derive(Debug)]
pub enum LocalCopy {
    /// The object is a local file.
    InPlace(PathBuf),
    /// A downloaded copy, which is deleted on drop.
    Fetched(NamedTempFile),
}

impl LocalCopy {
    /// Downloads the object at `url` to the temporary folder unless it is a local file.
    ///
    /// # Errors
    /// Returns an error of the store, or [`StoreError::File`] if the temporary folder has no room.
    pub fn fetch(url: &str) -> Result<Self, StoreError> {
        let (store, name) = open_object(url)?;
        if let Some(path) = store.local_path(&name) {
            return Ok(Self::InPlace(path));
        }
        let Some(bytes) = store.size(&name)? else { return Err(StoreError::Missing { url: store.url_of(&name) }) };
        let folder = std::env::temp_dir();
        let failed = |source: io::Error| StoreError::File { path: folder.clone(), source };
        let mut file = NamedTempFile::new_in(&folder).map_err(failed)?;
        for offset in (0..bytes).step_by(CHUNK as usize) {
            let chunk = store.get_range(&name, offset, CHUNK.min(bytes - offset))?;
            file.write_all(&chunk).map_err(failed)?;
        }
        file.flush().map_err(failed)?;
        Ok(Self::Fetched(file))
    }

    /// Path of the local file.
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
