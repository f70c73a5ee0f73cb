//! One folder of an object store, local or in a cloud, behind a blocking interface.
//!
//! URLs: a plain path or file:// (created when first written), s3://, gs://, az:// and the other names that the crate
//! object_store has for these clouds. Credentials and options come from where each cloud's own tools take them (see
//! [`cloud`]), never from the URL. Objects appear whole or not at all: local files are written under another name,
//! synced and renamed.
//!
//! Requests to a cloud that fail in a way that passes (overload, broken connections, stalls) are made again after a
//! random pause, for [`PATIENCE_VARIABLE`] seconds; a body that breaks off is continued where it broke.

pub mod cloud;
mod error;
mod failure;
mod folder;
pub mod lease;
pub mod object;
mod pace;
pub mod plain_file;
mod profile;
mod remote;
mod retry;
mod runtime;
mod secrets;
mod transfer;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectMeta, PutMode, UpdateVersion};
use tokio::runtime::Runtime;

use cloud::Environment;
pub use error::StoreError;
use failure::Failure;
pub use folder::unfinished_of;
use folder::{CopyError, Folder, PutFileError};
pub use pace::Pace;
use remote::Remote;
pub use retry::PATIENCE_VARIABLE;
use transfer::TransferError;

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Name below the store's URL.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// Which writing of an object it is; another one has another version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(UpdateVersion);

/// A folder of an object store. Clones share its connections.
#[derive(Clone)]
pub struct Store {
    url: String,
    place: Place,
    /// How fast files are sent to a cloud; None for as fast as can be.
    pace: Option<Arc<Pace>>,
    runtime: &'static Runtime,
}

#[derive(Clone)]
enum Place {
    Folder(Arc<Folder>),
    Cloud(Arc<Remote>),
}

impl fmt::Debug for Store {
    /// The URL alone: what else there is knows secrets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Store").field(&self.url).finish()
    }
}

impl Store {
    /// Opens the folder at `url` with the process's environment; nothing is read or created there yet.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_with(url, &Environment::of_process())
    }

    /// Opens the folder at `url` with other environment variables than the process's.
    pub fn open_with(url: &str, environment: &Environment) -> Result<Self, StoreError> {
        let runtime = runtime::runtime()?;
        let unusable = |source| StoreError::Url { url: cloud::redacted(url), source };
        if let Some(path) = folder::local_folder(url).map_err(unusable)? {
            let url = path.display().to_string();
            let folder = Folder::open(path).map_err(unusable)?;
            return Ok(Self { url, place: Place::Folder(Arc::new(folder)), pace: None, runtime });
        }
        let remote = cloud::open(url, environment)?;
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { url, place: Place::Cloud(Arc::new(remote)), pace: None, runtime })
    }

    /// The same store, to which [`Self::put_file`] sends large files no faster than `pace` says.
    pub fn paced(&self, pace: Arc<Pace>) -> Self {
        Self { pace: Some(pace), ..self.clone() }
    }

    /// The store's URL; an absolute path for a local folder.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// URL of an object, for people.
    pub fn url_of(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    /// Whether it is a local folder.
    pub fn is_local(&self) -> bool {
        matches!(self.place, Place::Folder(_))
    }

    /// Path of an object when the store is a local folder.
    pub fn local_path(&self, name: &str) -> Option<PathBuf> {
        match &self.place {
            Place::Folder(folder) => Some(folder.path.join(name)),
            Place::Cloud(_) => None,
        }
    }

    /// Reads an object.
    ///
    /// The bytes are of one version of the object and as many as the store says it has. That each of them arrived as
    /// it was written is not checked here, because stores do not tell in a common way: a bit that flips under way
    /// shows only in a hash that the reader knows, such as those of manifests. The same holds for
    /// [`Self::get_range`] and [`Self::download`].
    pub fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        Ok(self.read(name)?.0)
    }

    /// Reads an object with its version, for [`Self::put_if`]; None when there is none.
    pub fn get_versioned(&self, name: &str) -> Result<Option<(Bytes, Version)>, StoreError> {
        match self.read(name) {
            Ok(found) => Ok(Some(found)),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(&self, name: &str) -> Result<(Bytes, Version), StoreError> {
        let path = self.path(name)?;
        match &self.place {
            Place::Folder(folder) => self.of_folder(name, self.runtime.block_on(folder.get(&path))),
            Place::Cloud(remote) => self.of_transfer(name, remote, self.runtime.block_on(remote.get(&path))),
        }
    }

    /// Reads `length` bytes of an object from `offset`; an error if it ends before.
    pub fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let path = self.path(name)?;
        match &self.place {
            Place::Folder(folder) => {
                self.of_folder(name, self.runtime.block_on(folder.get_range(&path, offset, length)))
            }
            Place::Cloud(remote) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                let result = self.runtime.block_on(remote.get_range(&path, offset, length));
                self.of_transfer(name, remote, result)
            }
        }
    }

    /// Writes an object that has `bytes` bytes to a file, from its start: in parts, several at a time, with little
    /// memory however large it is. What the file holds after an error is of no use.
    ///
    /// # Errors
    /// [`StoreError::Size`] if the object has another size, [`StoreError::Copy`] if the file cannot be written, and
    /// those of [`Self::get`].
    pub fn download(&self, name: &str, bytes: u64, file: &File) -> Result<(), StoreError> {
        let path = self.path(name)?;
        match &self.place {
            Place::Folder(folder) => {
                let url = self.url_of(name);
                match folder.copy_to(name, file) {
                    Ok(found) if found == bytes => Ok(()),
                    Ok(found) => Err(StoreError::Size { url, expected: bytes, found }),
                    Err(CopyError::Read(error)) if error.kind() == io::ErrorKind::NotFound => {
                        Err(StoreError::Missing { url })
                    }
                    Err(CopyError::Read(source)) => Err(StoreError::File { path: folder.path.join(name), source }),
                    Err(CopyError::Write(source)) => Err(StoreError::Copy { url, source }),
                }
            }
            Place::Cloud(remote) => match self.runtime.block_on(remote.download(&path, bytes, file)) {
                Err(TransferError::Size(found)) => {
                    Err(StoreError::Size { url: self.url_of(name), expected: bytes, found })
                }
                result => self.of_transfer(name, remote, result),
            },
        }
    }

    /// Writes an object whole, replacing one of the same name.
    pub fn put(&self, name: &str, bytes: impl Into<Bytes>) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let bytes = bytes.into();
        match &self.place {
            Place::Folder(folder) => self.of_folder(name, self.runtime.block_on(folder.put(&path, bytes))),
            Place::Cloud(remote) => {
                let read = |range: std::ops::Range<u64>| Ok(bytes.slice(range.start as usize..range.end as usize));
                let result = self.runtime.block_on(remote.put(&path, bytes.len() as u64, &read, None));
                self.of_transfer(name, remote, result)
            }
        }
    }

    /// Writes a local file as an object, replacing one of the same name: a large one in parts, several at a time, of
    /// which 32 MiB are in memory at most.
    pub fn put_file(&self, name: &str, file: &FilePath) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let unreadable = |source| StoreError::File { path: file.to_path_buf(), source };
        let opened = File::open(file).map_err(unreadable)?;
        match &self.place {
            Place::Folder(folder) => match self.runtime.block_on(folder.put_file(&path, &opened)) {
                Ok(()) => Ok(()),
                Err(PutFileError::Read(source)) => Err(unreadable(source)),
                Err(PutFileError::Write(error)) => self.of_folder(name, Err(error)),
            },
            Place::Cloud(remote) => {
                let read = |range: std::ops::Range<u64>| {
                    let mut bytes = vec![0; (range.end - range.start) as usize];
                    opened.read_exact_at(&mut bytes, range.start)?;
                    Ok(Bytes::from(bytes))
                };
                let size = opened.metadata().map_err(unreadable)?.len();
                match self.runtime.block_on(remote.put(&path, size, &read, self.pace.as_deref())) {
                    Err(TransferError::Io(source)) => Err(unreadable(source)),
                    result => self.of_transfer(name, remote, result),
                }
            }
        }
    }

    /// Writes an object unless there is one of that name; false if there is. Of several writers at once one succeeds.
    pub fn put_new(&self, name: &str, bytes: impl Into<Bytes>) -> Result<bool, StoreError> {
        Ok(self.create(name, bytes.into())?.is_some())
    }

    pub(crate) fn create(&self, name: &str, bytes: Bytes) -> Result<Option<Version>, StoreError> {
        let path = self.path(name)?;
        match &self.place {
            Place::Folder(folder) => self.of_folder(name, self.runtime.block_on(folder.put_new(&path, bytes))),
            Place::Cloud(remote) => {
                let put = remote.put_conditionally(&path, bytes, PutMode::Create);
                self.of_remote(name, remote, self.runtime.block_on(put))
            }
        }
    }

    /// Replaces the version of an object that [`Self::get_versioned`] gave; false if it is another one by now, or
    /// gone. Of several writers at once one succeeds. In a local folder this holds among callers of this function only.
    pub fn put_if(&self, name: &str, bytes: impl Into<Bytes>, version: &Version) -> Result<bool, StoreError> {
        Ok(self.replace(name, bytes.into(), version)?.is_some())
    }

    pub(crate) fn replace(&self, name: &str, bytes: Bytes, version: &Version) -> Result<Option<Version>, StoreError> {
        let path = self.path(name)?;
        match &self.place {
            Place::Folder(folder) => self.of_folder(name, self.runtime.block_on(folder.put_if(&path, bytes, version))),
            Place::Cloud(remote) => {
                let put = remote.put_conditionally(&path, bytes, PutMode::Update(version.0.clone()));
                self.of_remote(name, remote, self.runtime.block_on(put))
            }
        }
    }

    /// Lists the objects below `prefix` (empty: all), sorted by name.
    pub fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let path = self.path(prefix)?;
        let found = match &self.place {
            Place::Folder(folder) => self.of_folder(prefix, self.runtime.block_on(folder.list(&path))),
            Place::Cloud(remote) => self.of_remote(prefix, remote, self.runtime.block_on(remote.list(&path))),
        };
        let found = match found {
            Err(StoreError::Missing { .. }) => Vec::new(),
            found => found?,
        };
        let mut objects: Vec<ObjectInfo> = found.into_iter().filter_map(|object| self.info(object)).collect();
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    fn info(&self, object: ObjectMeta) -> Option<ObjectInfo> {
        let parts: Vec<_> = object.location.prefix_match(self.prefix())?.collect();
        let name = parts.iter().map(|part| part.as_ref()).collect::<Vec<_>>().join("/");
        Some(ObjectInfo { name, bytes: object.size })
    }

    /// Size of an object in bytes, None when there is none.
    pub fn size(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let path = self.path(name)?;
        let size = match &self.place {
            Place::Folder(folder) => self.of_folder(name, self.runtime.block_on(folder.size(&path))),
            Place::Cloud(remote) => self.of_remote(name, remote, self.runtime.block_on(remote.size(&path))),
        };
        match size {
            Ok(size) => Ok(Some(size)),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the object exists.
    pub fn exists(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.size(name)?.is_some())
    }

    /// Deletes an object; one that does not exist is no error.
    pub fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let deleted = match &self.place {
            Place::Folder(folder) => self.of_folder(name, self.runtime.block_on(folder.delete(&path))),
            Place::Cloud(remote) => self.of_remote(name, remote, self.runtime.block_on(remote.delete(&path))),
        };
        match deleted {
            Err(StoreError::Missing { .. }) => Ok(()),
            deleted => deleted,
        }
    }

    /// Removes what a killed process left half written in the folder itself of objects whose names are `ours`; call it
    /// when nobody writes. Only local folders can hold such files: object_store writes to `NAME#NUMBER` there and
    /// renames.
    pub fn remove_unfinished(&self, ours: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        let Place::Folder(folder) = &self.place else { return Ok(()) };
        folder.remove_unfinished(ours).map_err(|source| StoreError::File { path: folder.path.clone(), source })
    }

    fn prefix(&self) -> &Path {
        match &self.place {
            Place::Folder(folder) => &folder.prefix,
            Place::Cloud(remote) => &remote.prefix,
        }
    }

    fn path(&self, name: &str) -> Result<Path, StoreError> {
        let relative =
            Path::parse(name).map_err(|source| StoreError::Url { url: self.url_of(name), source: source.into() })?;
        Ok(relative.parts().fold(self.prefix().clone(), |path, part| path.join(part)))
    }

    fn of_folder<T>(&self, name: &str, result: object_store::Result<T>) -> Result<T, StoreError> {
        result.map_err(|error| StoreError::of_folder(self.url_of(name), error))
    }

    fn of_remote<T>(&self, name: &str, remote: &Remote, result: Result<T, Failure>) -> Result<T, StoreError> {
        result.map_err(|failure| remote.scrubbed(failure).into_error(self.url_of(name)))
    }

    fn of_transfer<T>(&self, name: &str, remote: &Remote, result: Result<T, TransferError>) -> Result<T, StoreError> {
        let url = || self.url_of(name);
        match result {
            Ok(value) => Ok(value),
            Err(TransferError::Failure(failure)) => self.of_remote(name, remote, Err(failure)),
            Err(TransferError::Io(source)) => Err(StoreError::Copy { url: url(), source }),
            Err(TransferError::Size(found)) => {
                Err(StoreError::Other { url: url(), source: format!("it ends early, after {found} bytes").into() })
            }
            Err(TransferError::Doubtful) => Err(StoreError::Unavailable {
                url: url(),
                reason: "the store forgot the upload again and again; try again later".to_owned(),
            }),
            Err(TransferError::Replaced) => Err(StoreError::Unavailable {
                url: url(),
                reason: "somebody replaced it while it was read; read it again".to_owned(),
            }),
        }
    }
}
