//! Large objects travel in parts: several at a time, each tried again by itself and from where it broke.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, MultipartId, ObjectMeta, PutPayload, UpdateVersion};
use tokio::time::timeout;

use crate::Version;
use crate::failure::{Failure, Kind};
use crate::pace::Pace;
use crate::remote::Remote;
use crate::retry::{Attempts, retrying, within};

/// Size of a part of a download.
const DOWNLOAD_PART: u64 = 4 << 20;
/// Parts of a download in flight; what they hold in memory is what the network has not handed over yet.
const DOWNLOADS: usize = 8;
/// Objects up to this size are sent whole.
const WHOLE_UPLOAD: u64 = 16 << 20;
/// Size of a part of an upload, unless there would be too many.
const UPLOAD_PART: u64 = 8 << 20;
/// Parts of an upload in flight and in memory: 32 MiB.
const UPLOADS: usize = 4;
/// S3 takes 10,000 parts.
const MOST_PARTS: u64 = 9_000;
/// An object that others replace while it is read is read again so often.
const READINGS: usize = 5;
/// An upload whose end got lost is made again so often.
const WRITINGS: usize = 3;

/// Why a transfer ended.
pub(super) enum TransferError {
    /// The store.
    Failure(Failure),
    /// The local file.
    Io(io::Error),
    /// The object is of another size: this one.
    Size(u64),
    /// Somebody wrote another object in its place meanwhile.
    Replaced,
    /// An upload was completed or lost; nobody can tell.
    Doubtful,
}

impl From<Failure> for TransferError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// The one version of an object that all parts must be of.
struct Wanted<'a> {
    path: &'a Path,
    size: Option<u64>,
    e_tag: OnceLock<Option<String>>,
}

impl Wanted<'_> {
    fn check(&self, found: &ObjectMeta) -> Result<(), TransferError> {
        if self.e_tag.get_or_init(|| found.e_tag.clone()) != &found.e_tag {
            return Err(TransferError::Replaced);
        }
        match self.size {
            Some(size) if size != found.size => Err(TransferError::Size(found.size)),
            _ => Ok(()),
        }
    }
}

impl Remote {
    /// Reads an object of any size.
    pub(super) async fn get(&self, path: &Path) -> Result<(Bytes, Version), TransferError> {
        for _ in 1..READINGS {
            match self.get_once(path).await {
                Err(TransferError::Replaced | TransferError::Size(_)) => {}
                result => return result,
            }
        }
        self.get_once(path).await
    }

    async fn get_once(&self, path: &Path) -> Result<(Bytes, Version), TransferError> {
        let (meta, mut bytes) = self.first_part(path).await?;
        let version = Version(UpdateVersion { e_tag: meta.e_tag.clone(), version: meta.version.clone() });
        let first = bytes.len();
        let rest = usize::try_from(meta.size).ok().and_then(|size| size.checked_sub(first));
        let rest = rest.filter(|rest| bytes.try_reserve_exact(*rest).is_ok());
        let rest = rest.ok_or_else(|| Failure::lasting(format!("{} bytes do not fit the memory", meta.size)))?;
        bytes.resize(first + rest, 0);
        let wanted = Wanted { path, size: Some(meta.size), e_tag: OnceLock::from(meta.e_tag) };
        self.fetch_into(&wanted, first as u64, &mut bytes[first..]).await?;
        Ok((bytes.into(), version))
    }

    /// Reads the bytes from `offset`.
    pub(super) async fn get_range(&self, path: &Path, offset: u64, length: usize) -> Result<Bytes, TransferError> {
        let mut bytes = Vec::new();
        let room = bytes.try_reserve_exact(length);
        room.map_err(|_| Failure::lasting(format!("{length} bytes do not fit the memory")))?;
        bytes.resize(length, 0);
        let wanted = Wanted { path, size: None, e_tag: OnceLock::new() };
        self.fetch_into(&wanted, offset, &mut bytes).await?;
        Ok(bytes.into())
    }

    /// Writes an object of `size` bytes to the file, from its start.
    pub(super) async fn download(&self, path: &Path, size: u64, file: &File) -> Result<(), TransferError> {
        let wanted = Wanted { path, size: Some(size), e_tag: OnceLock::new() };
        let parts = (0..size).step_by(DOWNLOAD_PART as usize).map(|start| start..size.min(start + DOWNLOAD_PART));
        let fetches = parts.map(async |part| {
            self.fetch(&wanted, part, &mut |offset, bytes: &[u8]| file.write_all_at(bytes, offset)).await
        });
        let result = stream::iter(fetches).buffer_unordered(DOWNLOADS).try_collect::<()>().await;
        match result {
            // It ends before one of the parts begins.
            Err(TransferError::Failure(failure)) if failure.kind == Kind::Range => {
                Err(TransferError::Size(self.size(path).await?))
            }
            Ok(()) if size == 0 => match self.size(path).await? {
                0 => Ok(()),
                found => Err(TransferError::Size(found)),
            },
            result => result,
        }
    }

    async fn fetch_into(&self, wanted: &Wanted<'_>, offset: u64, bytes: &mut [u8]) -> Result<(), TransferError> {
        let parts = bytes.chunks_mut(DOWNLOAD_PART as usize).zip((offset..).step_by(DOWNLOAD_PART as usize));
        let fetches = parts.map(async |(part, start)| {
            let range = start..start + part.len() as u64;
            let mut keep = |offset: u64, bytes: &[u8]| {
                part[(offset - start) as usize..][..bytes.len()].copy_from_slice(bytes);
                Ok(())
            };
            self.fetch(wanted, range, &mut keep).await
        });
        stream::iter(fetches).buffer_unordered(DOWNLOADS).try_collect().await
    }

    /// Hands a range to `keep` piece by piece, with offsets in the object. After a failure only what is missing is
    /// asked for again.
    async fn fetch(
        &self,
        wanted: &Wanted<'_>,
        range: Range<u64>,
        keep: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), TransferError> {
        let mut attempts = Attempts::new(self.patience);
        let mut at = range.start;
        while at < range.end {
            let before = at;
            match self.fetch_some(wanted, &mut at, range.end, keep).await {
                Ok(()) => {}
                Err(TransferError::Failure(failure)) => {
                    if at > before {
                        attempts.progress();
                    }
                    attempts.again(failure).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One request for `at..end`; moves `at` past what was kept.
    async fn fetch_some(
        &self,
        wanted: &Wanted<'_>,
        at: &mut u64,
        end: u64,
        keep: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), TransferError> {
        let begin = *at;
        let options = GetOptions { range: Some(GetRange::Bounded(begin..end)), ..GetOptions::default() };
        let result = within(self.patience.stall(), self.objects.get_opts(wanted.path, options)).await?;
        wanted.check(&result.meta)?;
        if result.range != (begin..end) {
            return Err(TransferError::Size(result.meta.size));
        }
        let mut body = result.into_stream();
        while let Some(bytes) = self.next(&mut body).await? {
            if bytes.len() as u64 > end - *at {
                *at = begin; // whose bytes were the others?
                return Err(Failure::passing("the answer is longer than what was asked for").into());
            }
            keep(*at, &bytes).map_err(TransferError::Io)?;
            *at += bytes.len() as u64;
        }
        match *at == end {
            true => Ok(()),
            false => Err(Failure::passing(format!("the answer ended {} bytes early", end - *at)).into()),
        }
    }

    /// The facts of an object and its first bytes: all, if there are few.
    pub(super) async fn first_part(&self, path: &Path) -> Result<(ObjectMeta, Vec<u8>), Failure> {
        let mut attempts = Attempts::new(self.patience);
        // A range, because then the answer says how long the object is and a body that was cut short is seen.
        let mut range = Some(GetRange::Bounded(0..DOWNLOAD_PART));
        loop {
            let options = GetOptions { range: range.clone(), ..GetOptions::default() };
            let failure = match within(self.patience.stall(), self.objects.get_opts(path, options)).await {
                Ok(result) => match self.collect(result).await {
                    Ok(found) => return Ok(found),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            match range {
                // An empty object has no range that can be asked for.
                Some(_) if failure.kind == Kind::Range => range = None,
                _ => attempts.again(failure).await?,
            }
        }
    }

    async fn collect(&self, result: GetResult) -> Result<(ObjectMeta, Vec<u8>), Failure> {
        let (meta, range) = (result.meta.clone(), result.range.clone());
        let length = range.end.saturating_sub(range.start);
        let mut bytes = Vec::with_capacity(length.min(DOWNLOAD_PART) as usize);
        let mut body = result.into_stream();
        while let Some(more) = self.next(&mut body).await? {
            bytes.extend_from_slice(&more);
        }
        match bytes.len() as u64 == length {
            true => Ok((meta, bytes)),
            false => Err(Failure::passing(format!("the answer has {} bytes instead of {length}", bytes.len()))),
        }
    }

    async fn next(
        &self,
        body: &mut (impl futures::Stream<Item = object_store::Result<Bytes>> + Unpin),
    ) -> Result<Option<Bytes>, Failure> {
        match timeout(self.patience.stall(), body.next()).await {
            Ok(next) => next.transpose().map_err(Failure::from),
            Err(_) => Err(Failure::passing("the answer stalled")),
        }
    }

    /// Writes an object of `size` bytes that `read` gives range by range, replacing one of the same name; its parts keep
    /// the pace.
    pub(super) async fn put(
        &self,
        path: &Path,
        size: u64,
        read: &impl Fn(Range<u64>) -> io::Result<Bytes>,
        pace: Option<&Pace>,
    ) -> Result<(), TransferError> {
        if size <= WHOLE_UPLOAD {
            return Ok(self.put_whole(path, read(0..size).map_err(TransferError::Io)?).await?);
        }
        for _ in 1..WRITINGS {
            match self.put_in_parts(path, size, read, pace).await {
                Err(TransferError::Doubtful) => {}
                result => return result,
            }
        }
        self.put_in_parts(path, size, read, pace).await
    }

    async fn put_in_parts(
        &self,
        path: &Path,
        size: u64,
        read: &impl Fn(Range<u64>) -> io::Result<Bytes>,
        pace: Option<&Pace>,
    ) -> Result<(), TransferError> {
        let stall = self.patience.stall();
        let id = retrying(self.patience, stall, async || self.parts.create_multipart(path).await).await?;
        let part_bytes = UPLOAD_PART.max(size.div_ceil(MOST_PARTS));
        let parts = (0..size).step_by(part_bytes as usize).map(|start| start..size.min(start + part_bytes));
        let sends = parts.enumerate().map(async |(index, part)| {
            if let Some(pace) = pace {
                pace.wait(part.end - part.start).await;
            }
            let bytes = read(part).map_err(TransferError::Io)?;
            let send = async || self.parts.put_part(path, &id, index, PutPayload::from(bytes.clone())).await;
            Ok(retrying(self.patience, self.patience.upload(bytes.len()), send).await?)
        });
        let sent: Result<Vec<_>, TransferError> = stream::iter(sends).buffered(UPLOADS).try_collect().await;
        let completed = match sent {
            Ok(sent) => self.complete(path, &id, sent).await,
            Err(error) => Err(error),
        };
        if completed.is_err() {
            self.abort(path, &id).await;
        }
        completed
    }

    /// Makes the parts an object. If an attempt whose answer got lost succeeded, the store does not know the upload any
    /// more.
    async fn complete(&self, path: &Path, id: &MultipartId, sent: Vec<PartId>) -> Result<(), TransferError> {
        let mut attempts = Attempts::new(self.patience);
        let mut doubtful = false;
        loop {
            // The store may take its time to put many parts together.
            let complete = self.parts.complete_multipart(path, id, sent.clone());
            let Err(failure) = within(4 * self.patience.stall(), complete).await else { return Ok(()) };
            if doubtful && matches!(failure.kind, Kind::Missing | Kind::Denied) {
                return Err(TransferError::Doubtful);
            }
            attempts.again(failure).await?;
            doubtful = true;
        }
    }
}
