//! A folder of an object store behind a blocking interface.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use arinar_place::Place;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectMeta, PutMode};
use tokio::runtime::Runtime;

use crate::cloud;
use crate::environment::Environment;
use crate::error::StoreError;
use crate::failure::Failure;
use crate::folder::{CopyError, Folder, PutFileError};
use crate::rate_limiter::RateLimiter;
use crate::remote::Remote;
use crate::runtime;
use crate::transfer::TransferError;
use crate::version::Version;

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Name relative to the store's URL.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// A handle to a folder of an object store. Clones share its connections.
#[derive(Clone)]
pub struct Store {
    url: String,
    pub(crate) backend: Backend,
    /// Limit on the rate of uploads.
    rate_limiter: Option<Arc<RateLimiter>>,
    runtime: &'static Runtime,
}

#[derive(Clone)]
pub(crate) enum Backend {
    Folder(Arc<Folder>),
    Cloud(Arc<Remote>),
}

impl fmt::Debug for Store {
    /// Formats the URL only, because other fields contain secrets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Store").field(&self.url).finish()
    }
}

impl Store {
    /// Opens the folder at `url` with the environment of this process. Nothing is read or created yet.
    ///
    /// # Errors
    /// Returns an error if the URL, the credentials or the options cannot be used.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_with(url, &Environment::from_process())
    }

    /// Opens the folder at `url` with the given environment variables.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::open`].
    pub fn open_with(url: &str, environment: &Environment) -> Result<Self, StoreError> {
        Self::open_place(Place::parse(url)?, environment)
    }

    /// Opens a local folder, whatever characters its path has.
    ///
    /// # Errors
    /// Returns an error if the path is not absolute or not valid Unicode.
    pub fn open_folder(path: &FilePath) -> Result<Self, StoreError> {
        Self::open_place(Place::Local(path.to_path_buf()), &Environment::default())
    }

    pub(crate) fn open_place(place: Place, environment: &Environment) -> Result<Self, StoreError> {
        let runtime = runtime::runtime()?;
        let url = place.to_string();
        let backend = match place {
            Place::Local(path) => {
                let folder = Folder::open(path).map_err(|source| StoreError::Name { url: url.clone(), source })?;
                Backend::Folder(Arc::new(folder))
            }
            Place::Remote(folder) => Backend::Cloud(Arc::new(cloud::open(&folder, environment)?)),
        };
        Ok(Self { url, backend, rate_limiter: None, runtime })
    }

    /// Returns a handle to the same store whose [`Self::put_file`] limits the rate at which it uploads large files.
    pub fn with_rate_limiter(&self, rate_limiter: Arc<RateLimiter>) -> Self {
        Self { rate_limiter: Some(rate_limiter), ..self.clone() }
    }

    /// URL of the store; an absolute path for a local folder.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the URL of an object, for messages.
    pub fn url_of(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    /// Whether the store is a local folder.
    pub fn is_local(&self) -> bool {
        matches!(self.backend, Backend::Folder(_))
    }

    /// Returns the path of an object if the store is a local folder.
    pub fn local_path(&self, name: &str) -> Option<PathBuf> {
        match &self.backend {
            Backend::Folder(folder) => Some(folder.path.join(name)),
            Backend::Cloud(_) => None,
        }
    }

    /// Reads an object.
    ///
    /// All bytes belong to one version of the object, and their number is the size that the store reports. Bits that
    /// flip in transit are not detected, because stores have no common checksum; callers detect them with known hashes,
    /// such as those of manifests. The same holds for [`Self::get_range`] and [`Self::download`].
    pub fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        Ok(self.read(name)?.0)
    }

    /// Reads an object and its version for [`Self::put_if`]. Returns `None` if it does not exist.
    pub fn get_versioned(&self, name: &str) -> Result<Option<(Bytes, Version)>, StoreError> {
        match self.read(name) {
            Ok(found) => Ok(Some(found)),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(&self, name: &str) -> Result<(Bytes, Version), StoreError> {
        let path = self.path(name)?;
        match &self.backend {
            Backend::Folder(folder) => self.of_folder(name, self.runtime.block_on(folder.get(&path))),
            Backend::Cloud(remote) => self.of_transfer(name, remote, self.runtime.block_on(remote.get(&path))),
        }
    }

    /// Reads `length` bytes of an object from `offset`. Fails if the object is shorter.
    pub fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let path = self.path(name)?;
        match &self.backend {
            Backend::Folder(folder) => {
                self.of_folder(name, self.runtime.block_on(folder.get_range(&path, offset, length)))
            }
            Backend::Cloud(remote) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                let result = self.runtime.block_on(remote.get_range(&path, offset, length));
                self.of_transfer(name, remote, result)
            }
        }
    }

    /// Downloads an object of `bytes` bytes to the beginning of a file, in parallel parts and with little memory. After
    /// an error, the contents of the file are undefined.
    ///
    /// # Errors
    /// Returns [`StoreError::Size`] if the object has another size, [`StoreError::Copy`] if the file cannot be written,
    /// and the errors of [`Self::get`].
    pub fn download(&self, name: &str, bytes: u64, file: &File) -> Result<(), StoreError> {
        let path = self.path(name)?;
        match &self.backend {
            Backend::Folder(folder) => {
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
            Backend::Cloud(remote) => match self.runtime.block_on(remote.download(&path, bytes, file)) {
                Err(TransferError::Size(found)) => {
                    Err(StoreError::Size { url: self.url_of(name), expected: bytes, found })
                }
                result => self.of_transfer(name, remote, result),
            },
        }
    }

    /// Writes an object, and replaces an existing one with the same name.
    pub fn put(&self, name: &str, bytes: impl Into<Bytes>) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let bytes = bytes.into();
        match &self.backend {
            Backend::Folder(folder) => self.of_folder(name, self.runtime.block_on(folder.put(&path, bytes))),
            Backend::Cloud(remote) => {
                let read = |range: std::ops::Range<u64>| Ok(bytes.slice(range.start as usize..range.end as usize));
                let result = self.runtime.block_on(remote.put(&path, bytes.len() as u64, &read, None));
                self.of_transfer(name, remote, result)
            }
        }
    }

    /// Writes a local file as an object, and replaces an existing one with the same name. A large file is sent in
    /// parallel parts, of which at most 32 MiB are in memory.
    pub fn put_file(&self, name: &str, file: &FilePath) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let unreadable = |source| StoreError::File { path: file.to_path_buf(), source };
        let opened = File::open(file).map_err(unreadable)?;
        match &self.backend {
            Backend::Folder(folder) => match self.runtime.block_on(folder.put_file(&path, &opened)) {
                Ok(()) => Ok(()),
                Err(PutFileError::Read(source)) => Err(unreadable(source)),
                Err(PutFileError::Write(error)) => self.of_folder(name, Err(error)),
            },
            Backend::Cloud(remote) => {
                let read = |range: std::ops::Range<u64>| {
                    let mut bytes = vec![0; (range.end - range.start) as usize];
                    opened.read_exact_at(&mut bytes, range.start)?;
                    Ok(Bytes::from(bytes))
                };
                let size = opened.metadata().map_err(unreadable)?.len();
                match self.runtime.block_on(remote.put(&path, size, &read, self.rate_limiter.as_deref())) {
                    Err(TransferError::Io(source)) => Err(unreadable(source)),
                    result => self.of_transfer(name, remote, result),
                }
            }
        }
    }

    /// Creates an object. Returns false if it exists. If several writers call it at once, one of them succeeds.
    pub fn put_new(&self, name: &str, bytes: impl Into<Bytes>) -> Result<bool, StoreError> {
        Ok(self.create(name, bytes.into())?.is_some())
    }

    pub(crate) fn create(&self, name: &str, bytes: Bytes) -> Result<Option<Version>, StoreError> {
        let path = self.path(name)?;
        match &self.backend {
            Backend::Folder(folder) => self.of_folder(name, self.runtime.block_on(folder.put_new(&path, bytes))),
            Backend::Cloud(remote) => {
                let put = remote.put_conditionally(&path, bytes, PutMode::Create);
                self.of_remote(name, remote, self.runtime.block_on(put))
            }
        }
    }

    /// Replaces the version of an object that [`Self::get_versioned`] returned. Returns false if the object has another
    /// version or does not exist. If several writers call it at once, one of them succeeds; in a local folder, this
    /// does not hold for writers that use other functions.
    pub fn put_if(&self, name: &str, bytes: impl Into<Bytes>, version: &Version) -> Result<bool, StoreError> {
        Ok(self.replace(name, bytes.into(), version)?.is_some())
    }

    pub(crate) fn replace(&self, name: &str, bytes: Bytes, version: &Version) -> Result<Option<Version>, StoreError> {
        let path = self.path(name)?;
        match &self.backend {
            Backend::Folder(folder) => {
                self.of_folder(name, self.runtime.block_on(folder.put_if(&path, bytes, version)))
            }
            Backend::Cloud(remote) => {
                let put = remote.put_conditionally(&path, bytes, PutMode::Update(version.0.clone()));
                self.of_remote(name, remote, self.runtime.block_on(put))
            }
        }
    }

    /// Lists the objects below `prefix`, or all objects if it is empty, sorted by name.
    pub fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let path = self.path(prefix)?;
        let found = match &self.backend {
            Backend::Folder(folder) => self.of_folder(prefix, self.runtime.block_on(folder.list(&path))),
            Backend::Cloud(remote) => self.of_remote(prefix, remote, self.runtime.block_on(remote.list(&path))),
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

    /// Returns the size of an object in bytes, or `None` if it does not exist.
    pub fn size(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let path = self.path(name)?;
        let size = match &self.backend {
            Backend::Folder(folder) => self.of_folder(name, self.runtime.block_on(folder.size(&path))),
            Backend::Cloud(remote) => self.of_remote(name, remote, self.runtime.block_on(remote.size(&path))),
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

    /// Deletes an object. It is not an error if the object does not exist.
    pub fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let deleted = match &self.backend {
            Backend::Folder(folder) => self.of_folder(name, self.runtime.block_on(folder.delete(&path))),
            Backend::Cloud(remote) => self.of_remote(name, remote, self.runtime.block_on(remote.delete(&path))),
        };
        match deleted {
            Err(StoreError::Missing { .. }) => Ok(()),
            deleted => deleted,
        }
    }

    /// Removes the temporary files of interrupted writes of objects whose names satisfy `is_ours`, directly in the
    /// folder. Must not be called while another process writes. Only local folders contain such files: object_store
    /// writes to `NAME#NUMBER` and renames.
    pub fn remove_unfinished(&self, is_ours: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        let Backend::Folder(folder) = &self.backend else { return Ok(()) };
        folder.remove_unfinished(is_ours).map_err(|source| StoreError::File { path: folder.path.clone(), source })
    }

    fn prefix(&self) -> &Path {
        match &self.backend {
            Backend::Folder(folder) => &folder.prefix,
            Backend::Cloud(remote) => &remote.prefix,
        }
    }

    fn path(&self, name: &str) -> Result<Path, StoreError> {
        let relative =
            Path::parse(name).map_err(|source| StoreError::Name { url: self.url_of(name), source: source.into() })?;
        Ok(relative.parts().fold(self.prefix().clone(), |path, part| path.join(part)))
    }

    fn of_folder<T>(&self, name: &str, result: object_store::Result<T>) -> Result<T, StoreError> {
        result.map_err(|error| StoreError::of_folder(self.url_of(name), error))
    }

    fn of_remote<T>(&self, name: &str, remote: &Remote, result: Result<T, Failure>) -> Result<T, StoreError> {
        result.map_err(|failure| remote.redacted(failure).into_error(self.url_of(name)))
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
            Err(TransferError::Uncertain) => Err(StoreError::Unavailable {
                url: url(),
                reason: "the store repeatedly lost the upload; try again later".to_owned(),
            }),
            Err(TransferError::Replaced) => Err(StoreError::Unavailable {
                url: url(),
                reason: "another writer replaced it while it was read; read it again".to_owned(),
            }),
        }
    }
}
