//! One folder of an object store, local or in a cloud, behind a blocking interface.
//!
//! URLs: a plain path or file:// (created when first written), s3://, gs://, az:// and whatever else the crate
//! object_store knows. Credentials come from the usual environment variables of each cloud. Objects appear
//! whole or not at all: local files are written under another name, synced and renamed.

use std::error::Error as StdError;
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use thiserror::Error;
use tokio::runtime::Runtime;
use url::Url;

/// Files above this size are uploaded in parts.
const MULTIPART_BYTES: u64 = 32 << 20;
/// Parts of an upload in flight at a time.
const MULTIPART_CONCURRENCY: usize = 8;

type Source = Box<dyn StdError + Send + Sync>;

/// What went wrong with a store; carries the URL of the object.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The URL is not one of a known store.
    #[error("{url} is not a usable store URL ({source}); use a path, file://, s3://, gs:// or az://")]
    Url {
        /// The URL given.
        url: String,
        /// What is wrong with it.
        source: Source,
    },
    /// No such object.
    #[error("{url} does not exist")]
    Missing {
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
    /// A local file or folder cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
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
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Name below the store's URL.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// A folder of an object store.
#[derive(Clone, Debug)]
pub struct Store {
    url: String,
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    /// The folder itself when the store is the local file system.
    folder: Option<PathBuf>,
    runtime: Arc<Runtime>,
}

impl Store {
    /// Opens the folder at `url`; nothing is read or created yet.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        let unusable = |source: Source| StoreError::Url { url: url.to_owned(), source };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = Arc::new(runtime.map_err(|source| unusable(source.into()))?);
        if let Some(folder) = local_folder(url).map_err(unusable)? {
            let prefix = Path::from_absolute_path(&folder).map_err(|source| unusable(source.into()))?;
            let objects = Arc::new(LocalFileSystem::new().with_fsync(true));
            return Ok(Self { url: folder.display().to_string(), objects, prefix, folder: Some(folder), runtime });
        }
        let parsed = Url::parse(url).map_err(|source| unusable(source.into()))?;
        let environment = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let (objects, prefix) =
            object_store::parse_url_opts(&parsed, environment).map_err(|source| unusable(source.into()))?;
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { url, objects: Arc::from(objects), prefix, folder: None, runtime })
    }

    /// The store's URL; an absolute path for a local folder.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// URL of an object, for people.
    pub fn url_of(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    /// Path of an object when the store is a local folder.
    pub fn local_path(&self, name: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(name))
    }

    /// Reads an object.
    pub fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        let path = self.path(name)?;
        self.runtime
            .block_on(async { self.objects.get(&path).await?.bytes().await })
            .map_err(|source| self.error(name, source))
    }

    /// Reads an object of `bytes` bytes into a file.
    pub fn download(&self, name: &str, bytes: u64, file: &std::fs::File) -> Result<(), StoreError> {
        let contents = self.get(name)?;
        let failed = |source| StoreError::File { path: FilePath::new(name).to_path_buf(), source };
        file.set_len(bytes).map_err(failed)?;
        std::os::unix::fs::FileExt::write_all_at(file, &contents, 0).map_err(failed)
    }

    /// Reads `length` bytes of an object from `offset`.
    pub fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let path = self.path(name)?;
        self.runtime
            .block_on(self.objects.get_range(&path, offset..offset + length))
            .map_err(|source| self.error(name, source))
    }

    /// Writes an object whole, replacing one of the same name.
    pub fn put(&self, name: &str, bytes: impl Into<Bytes>) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let payload = PutPayload::from(bytes.into());
        self.runtime.block_on(self.objects.put(&path, payload)).map_err(|source| self.error(name, source))?;
        Ok(())
    }

    /// Writes a local file as an object, in parts where it is large.
    pub fn put_file(&self, name: &str, file: &FilePath) -> Result<(), StoreError> {
        let unreadable = |source| StoreError::File { path: file.to_path_buf(), source };
        if std::fs::metadata(file).map_err(unreadable)?.len() <= MULTIPART_BYTES {
            return self.put(name, std::fs::read(file).map_err(unreadable)?);
        }
        let path = self.path(name)?;
        let mut reader = std::fs::File::open(file).map_err(unreadable)?;
        self.runtime.block_on(async {
            let upload = self.objects.put_multipart(&path).await.map_err(|source| self.error(name, source))?;
            let mut writer = WriteMultipart::new_with_chunk_size(upload, MULTIPART_BYTES as usize / 4);
            let mut buffer = vec![0; MULTIPART_BYTES as usize / 4];
            loop {
                let read = io::Read::read(&mut reader, &mut buffer).map_err(unreadable)?;
                if read == 0 {
                    break;
                }
                let room = writer.wait_for_capacity(MULTIPART_CONCURRENCY).await;
                room.map_err(|source| self.error(name, source))?;
                writer.write(&buffer[..read]);
            }
            writer.finish().await.map_err(|source| self.error(name, source))?;
            Ok(())
        })
    }

    /// Lists the objects below `prefix` (empty: all), sorted by name.
    pub fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let path = self.path(prefix)?;
        let found: Result<Vec<_>, _> = self.runtime.block_on(self.objects.list(Some(&path)).try_collect());
        let found = match found {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(Vec::new()),
            Err(source) => return Err(self.error(prefix, source)),
        };
        let mut objects: Vec<ObjectInfo> = found
            .into_iter()
            .filter_map(|object| {
                let parts: Vec<_> = object.location.prefix_match(&self.prefix)?.collect();
                let name = parts.iter().map(|part| part.as_ref()).collect::<Vec<_>>().join("/");
                Some(ObjectInfo { name, bytes: object.size })
            })
            .collect();
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    /// Size of an object in bytes, None when there is none.
    pub fn size(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let path = self.path(name)?;
        match self.runtime.block_on(self.objects.head(&path)) {
            Ok(object) => Ok(Some(object.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.error(name, source)),
        }
    }

    /// Whether the object exists.
    pub fn exists(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.size(name)?.is_some())
    }

    /// Deletes an object; one that does not exist is no error.
    pub fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name)?;
        match self.runtime.block_on(self.objects.delete(&path)) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.error(name, source)),
        }
    }

    /// Removes what a killed process left half written in the folder itself; call it when nobody writes. Only local
    /// folders can hold such files: object_store writes to `NAME#NUMBER` there and renames.
    pub fn remove_unfinished(&self) -> Result<(), StoreError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let failed = |source| StoreError::File { path: folder.clone(), source };
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| Some(name.rsplit_once('#')?.1));
            if number.is_some_and(|number| number.parse::<u64>().is_ok()) {
                std::fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> Result<Path, StoreError> {
        let relative =
            Path::parse(name).map_err(|source| StoreError::Url { url: self.url_of(name), source: source.into() })?;
        Ok(relative.parts().fold(self.prefix.clone(), |path, part| path.join(part)))
    }

    fn error(&self, name: &str, source: object_store::Error) -> StoreError {
        let url = self.url_of(name);
        if let object_store::Error::NotFound { .. } = source {
            return StoreError::Missing { url };
        }
        let cause = io_cause(&source).map(|cause| (cause.kind(), io::Error::new(cause.kind(), cause.to_string())));
        match (cause, &source) {
            (Some((io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, source)), _) => {
                StoreError::Full { url, source }
            }
            (Some((io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem, _)), _)
            | (_, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. }) => {
                StoreError::Denied { url, source: source.into() }
            }
            _ => StoreError::Other { url, source: source.into() },
        }
    }
}

/// The absolute folder behind a plain path or a file:// URL; None for other URLs.
fn local_folder(url: &str) -> Result<Option<PathBuf>, Source> {
    let path = match url.split_once("://") {
        Some(("file", _)) => {
            Url::parse(url)?.to_file_path().map_err(|()| "a file URL needs three slashes: file:///folder")?
        }
        Some(_) => return Ok(None),
        None if url.is_empty() => return Err("it is empty".into()),
        None => PathBuf::from(url),
    };
    Ok(Some(std::path::absolute(path)?))
}

/// The input/output error behind a store's error, if there is one.
fn io_cause(error: &object_store::Error) -> Option<&io::Error> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
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
    fn objects_come_back_as_they_were_put() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let url = format!("file://{}/with space/runs", folder.path().display());
        let store = Store::open(&url).expect("open");
        assert!(!store.exists("a/b.bin").expect("exists"));
        assert!(store.list("").expect("list").is_empty());
        assert!(store.get("a/b.bin").expect_err("missing").is_missing());
        store.put("a/b.bin", vec![1u8, 2, 3]).expect("put");
        store.put("top", Vec::new()).expect("put");
        assert_eq!(store.get("a/b.bin").expect("get").as_ref(), [1, 2, 3]);
        assert_eq!(store.get_range("a/b.bin", 1, 2).expect("range").as_ref(), [2, 3]);
        let names: Vec<_> = store.list("").expect("list").into_iter().map(|o| (o.name, o.bytes)).collect();
        assert_eq!(names, [("a/b.bin".to_owned(), 3), ("top".to_owned(), 0)]);
        assert_eq!(std::fs::read(store.local_path("a/b.bin").expect("local")).expect("read"), [1, 2, 3]);
        store.delete("a/b.bin").expect("delete");
        store.delete("a/b.bin").expect("delete again");
        assert!(!store.exists("a/b.bin").expect("exists"));
    }

    #[test]
    fn large_files_are_stored_in_parts() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let bytes: Vec<u8> = (0..MULTIPART_BYTES + 12_345).map(|i| (i % 251) as u8).collect();
        std::fs::write(folder.path().join("large"), &bytes).expect("write");
        let store = Store::open(&folder.path().join("store").display().to_string()).expect("open");
        store.put_file("copy", &folder.path().join("large")).expect("put_file");
        assert_eq!(store.get("copy").expect("get").as_ref(), bytes);
    }

    #[test]
    fn half_written_files_are_removed_and_others_kept() {
        let folder = tempfile::tempdir().expect("temporary folder");
        for name in ["a#1", "a", "b#x", "c#"] {
            std::fs::write(folder.path().join(name), name).expect("write");
        }
        Store::open(&folder.path().display().to_string()).expect("open").remove_unfinished().expect("remove");
        let left = |name: &str| folder.path().join(name).exists();
        assert_eq!(["a#1", "a", "b#x", "c#"].map(left), [false, true, true, true]);
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let cause = io::Error::from(io::ErrorKind::StorageFull);
        let store = Store::open("/somewhere").expect("open");
        let error = store.error("x", object_store::Error::Generic { store: "test", source: Box::new(cause) });
        assert!(matches!(error, StoreError::Full { .. }), "{error}");
    }

    #[test]
    fn unknown_schemes_are_refused() {
        let error = Store::open("ftp://host/x").expect_err("no such store");
        assert!(error.to_string().contains("s3://"), "{error}");
    }
}
