//! Stores in the local file system. Files are written under another name, synced and renamed.

use std::fs::File;
use std::io::{self, Seek};
use std::path::PathBuf;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion, WriteMultipart,
};

use crate::error::Source;
use crate::version::Version;

/// Size of the chunks in which a file is copied into the store.
const CHUNK_BYTES: usize = 4 << 20;

/// A store in a local folder.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) prefix: Path,
    objects: LocalFileSystem,
}

impl Folder {
    pub(super) fn open(path: PathBuf) -> Result<Self, Source> {
        let prefix = Path::from_absolute_path(&path)?;
        Ok(Self { path, prefix, objects: LocalFileSystem::new().with_fsync(true) })
    }

    pub(super) async fn get(&self, path: &Path) -> object_store::Result<(Bytes, Version)> {
        let found = self.objects.get(path).await?;
        let version = Version(UpdateVersion { e_tag: found.meta.e_tag.clone(), version: None });
        Ok((found.bytes().await?, version))
    }

    pub(super) async fn get_range(&self, path: &Path, offset: u64, length: u64) -> object_store::Result<Bytes> {
        let bytes = self.objects.get_range(path, offset..offset.saturating_add(length)).await?;
        if bytes.len() as u64 == length {
            return Ok(bytes);
        }
        let source = format!("it ends {} bytes early", length - bytes.len() as u64);
        Err(Error::Generic { store: "folder", source: source.into() })
    }

    pub(super) async fn put(&self, path: &Path, bytes: Bytes) -> object_store::Result<()> {
        self.objects.put(path, PutPayload::from(bytes)).await.map(|_| ())
    }

    /// Copies a file into the store.
    pub(super) async fn put_file(&self, path: &Path, file: &File) -> Result<(), PutFileError> {
        let upload = self.objects.put_multipart(path).await?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, CHUNK_BYTES);
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut reader = file;
        loop {
            let read = io::Read::read(&mut reader, &mut buffer).map_err(PutFileError::Read)?;
            if read == 0 {
                break;
            }
            writer.wait_for_capacity(1).await?;
            writer.write(&buffer[..read]);
        }
        writer.finish().await?;
        Ok(())
    }

    /// Creates a file. Returns `None` if it exists.
    pub(super) async fn put_new(&self, path: &Path, bytes: Bytes) -> object_store::Result<Option<Version>> {
        let options = PutOptions::from(PutMode::Create);
        match self.objects.put_opts(path, PutPayload::from(bytes), options).await {
            Ok(put) => Ok(Some(Version(UpdateVersion { e_tag: put.e_tag, version: None }))),
            Err(Error::AlreadyExists { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces a version of a file. Returns `None` if the file does not have that version. The function locks the
    /// folder, so that concurrent calls are safe; the kernel releases the lock of a process that dies.
    pub(super) async fn put_if(
        &self,
        path: &Path,
        bytes: Bytes,
        version: &Version,
    ) -> object_store::Result<Option<Version>> {
        let failed = |source: io::Error| Error::Generic { store: "folder", source: source.into() };
        let folder = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            folder => folder.map_err(failed)?,
        };
        folder.lock().map_err(failed)?;
        match self.objects.head(path).await {
            Ok(found) if found.e_tag == version.0.e_tag => {
                let put = self.objects.put(path, PutPayload::from(bytes)).await?;
                Ok(Some(Version(UpdateVersion { e_tag: put.e_tag, version: None })))
            }
            Ok(_) | Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn list(&self, path: &Path) -> object_store::Result<Vec<ObjectMeta>> {
        self.objects.list(Some(path)).try_collect().await
    }

    pub(super) async fn size(&self, path: &Path) -> object_store::Result<u64> {
        Ok(self.objects.head(path).await?.size)
    }

    pub(super) async fn delete(&self, path: &Path) -> object_store::Result<()> {
        self.objects.delete(path).await
    }

    /// Copies a file of the store to the beginning of another file. Returns its size.
    pub(super) fn copy_to(&self, name: &str, mut target: &File) -> Result<u64, CopyError> {
        let mut source = File::open(self.path.join(name)).map_err(CopyError::Read)?;
        target.rewind().map_err(CopyError::Write)?;
        io::copy(&mut source, &mut target).map_err(CopyError::Write)
    }

    /// See [`crate::Store::remove_unfinished`].
    pub(super) fn remove_unfinished(&self, is_ours: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let object = name.to_str().and_then(unfinished_of);
            if object.is_some_and(&is_ours) && entry.file_type()?.is_file() {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Returns the name of the object if `name` is the name of its temporary file in a local folder, and `None` for other
/// files.
pub fn unfinished_of(name: &str) -> Option<&str> {
    let (object, number) = name.rsplit_once('#')?;
    number.parse::<u64>().is_ok().then_some(object)
}

/// Side of a copy that failed.
pub(super) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Side of a copy into the store that failed.
pub(super) enum PutFileError {
    Read(io::Error),
    Write(Error),
}

impl From<Error> for PutFileError {
    fn from(error: Error) -> Self {
        Self::Write(error)
    }
}
