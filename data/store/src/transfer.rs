//! Transfer of large objects in parallel parts. Each part is retried separately, and continues where it was
//! interrupted.

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

use crate::failure::{Failure, Kind};
use crate::rate_limiter::RateLimiter;
use crate::remote::Remote;
use crate::retry::{Attempts, retrying, within};
use crate::version::Version;

/// Size of a part of a download.
const DOWNLOAD_PART: u64 = 4 << 20;
/// Number of parts of a download in flight. Received data are passed on immediately and not kept in memory.
const PARALLEL_DOWNLOADS: usize = 8;
/// Maximum size of an object that is uploaded in one request.
const MAX_SINGLE_UPLOAD: u64 = 16 << 20;
/// Minimum size of a part of an upload.
const UPLOAD_PART: u64 = 8 << 20;
/// Number of parts of an upload in flight and in memory: 32 MiB.
const PARALLEL_UPLOADS: usize = 4;
/// Maximum number of parts; S3 accepts 10,000.
const MAX_PARTS: u64 = 9_000;
/// Number of times to read an object that other writers replace during the download.
const READ_ATTEMPTS: usize = 5;
/// Number of times to repeat an upload whose completion is uncertain.
const WRITE_ATTEMPTS: usize = 3;

/// Reason why a transfer failed.
pub(super) enum TransferError {
    /// A request failed.
    Failure(Failure),
    /// The local file cannot be read or written.
    Io(io::Error),
    /// The object has this size instead of the expected one.
    Size(u64),
    /// Another writer replaced the object during the transfer.
    Replaced,
    /// The upload was either completed or lost.
    Uncertain,
}

impl From<Failure> for TransferError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// The version of an object to which all parts must belong.
struct Expected<'a> {
    path: &'a Path,
    size: Option<u64>,
    e_tag: OnceLock<Option<String>>,
}

impl Expected<'_> {
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
        for _ in 1..READ_ATTEMPTS {
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
        let rest = rest.ok_or_else(|| Failure::permanent(format!("{} bytes do not fit in memory", meta.size)))?;
        bytes.resize(first + rest, 0);
        let expected = Expected { path, size: Some(meta.size), e_tag: OnceLock::from(meta.e_tag) };
        self.fetch_into(&expected, first as u64, &mut bytes[first..]).await?;
        Ok((bytes.into(), version))
    }

    /// Reads `length` bytes from `offset`.
    pub(super) async fn get_range(&self, path: &Path, offset: u64, length: usize) -> Result<Bytes, TransferError> {
        let mut bytes = Vec::new();
        let room = bytes.try_reserve_exact(length);
        room.map_err(|_| Failure::permanent(format!("{length} bytes do not fit in memory")))?;
        bytes.resize(length, 0);
        let expected = Expected { path, size: None, e_tag: OnceLock::new() };
        self.fetch_into(&expected, offset, &mut bytes).await?;
        Ok(bytes.into())
    }

    /// Downloads an object of `size` bytes to the beginning of a file.
    pub(super) async fn download(&self, path: &Path, size: u64, file: &File) -> Result<(), TransferError> {
        let expected = Expected { path, size: Some(size), e_tag: OnceLock::new() };
        let parts = (0..size).step_by(DOWNLOAD_PART as usize).map(|start| start..size.min(start + DOWNLOAD_PART));
        let fetches = parts.map(async |part| {
            self.fetch(&expected, part, &mut |offset, bytes: &[u8]| file.write_all_at(bytes, offset)).await
        });
        let result = stream::iter(fetches).buffer_unordered(PARALLEL_DOWNLOADS).try_collect::<()>().await;
        match result {
            // The object ends before one of the parts begins.
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

    async fn fetch_into(&self, expected: &Expected<'_>, offset: u64, bytes: &mut [u8]) -> Result<(), TransferError> {
        let parts = bytes.chunks_mut(DOWNLOAD_PART as usize).zip((offset..).step_by(DOWNLOAD_PART as usize));
        let fetches = parts.map(async |(part, start)| {
            let range = start..start + part.len() as u64;
            let mut keep = |offset: u64, bytes: &[u8]| {
                part[(offset - start) as usize..][..bytes.len()].copy_from_slice(bytes);
                Ok(())
            };
            self.fetch(expected, range, &mut keep).await
        });
        stream::iter(fetches).buffer_unordered(PARALLEL_DOWNLOADS).try_collect().await
    }

    /// Passes the data of a range to `keep` with their offsets in the object. After a failure, only the missing data
    /// are requested again.
    async fn fetch(
        &self,
        expected: &Expected<'_>,
        range: Range<u64>,
        keep: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), TransferError> {
        let mut attempts = Attempts::new(self.retry);
        let mut at = range.start;
        while at < range.end {
            let before = at;
            match self.fetch_some(expected, &mut at, range.end, keep).await {
                Ok(()) => {}
                Err(TransferError::Failure(failure)) => {
                    if at > before {
                        attempts.reset();
                    }
                    attempts.back_off(failure).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Requests `at..end` once, and advances `at` past the data that were kept.
    async fn fetch_some(
        &self,
        expected: &Expected<'_>,
        at: &mut u64,
        end: u64,
        keep: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), TransferError> {
        let begin = *at;
        let options = GetOptions { range: Some(GetRange::Bounded(begin..end)), ..GetOptions::default() };
        let result = within(self.retry.stall_timeout(), self.objects.get_opts(expected.path, options)).await?;
        expected.check(&result.meta)?;
        if result.range != (begin..end) {
            return Err(TransferError::Size(result.meta.size));
        }
        let mut body = result.into_stream();
        while let Some(bytes) = self.next(&mut body).await? {
            if bytes.len() as u64 > end - *at {
                *at = begin; // the data received so far cannot be trusted
                return Err(Failure::temporary("the answer is longer than the requested range").into());
            }
            keep(*at, &bytes).map_err(TransferError::Io)?;
            *at += bytes.len() as u64;
        }
        match *at == end {
            true => Ok(()),
            false => Err(Failure::temporary(format!("the answer ended {} bytes early", end - *at)).into()),
        }
    }

    /// Returns the metadata of an object and its first bytes, which are all bytes of a small object.
    pub(super) async fn first_part(&self, path: &Path) -> Result<(ObjectMeta, Vec<u8>), Failure> {
        let mut attempts = Attempts::new(self.retry);
        // The answer to a range request contains the size of the object, which reveals a truncated body.
        let mut range = Some(GetRange::Bounded(0..DOWNLOAD_PART));
        loop {
            let options = GetOptions { range: range.clone(), ..GetOptions::default() };
            let failure = match within(self.retry.stall_timeout(), self.objects.get_opts(path, options)).await {
                Ok(result) => match self.collect(result).await {
                    Ok(found) => return Ok(found),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            match range {
                // An empty object has no valid range.
                Some(_) if failure.kind == Kind::Range => range = None,
                _ => attempts.back_off(failure).await?,
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
            false => Err(Failure::temporary(format!("the answer has {} bytes instead of {length}", bytes.len()))),
        }
    }

    async fn next(
        &self,
        body: &mut (impl futures::Stream<Item = object_store::Result<Bytes>> + Unpin),
    ) -> Result<Option<Bytes>, Failure> {
        match timeout(self.retry.stall_timeout(), body.next()).await {
            Ok(next) => next.transpose().map_err(Failure::from),
            Err(_) => Err(Failure::temporary("the answer stalled")),
        }
    }

    /// Uploads an object of `size` bytes, whose ranges `read` returns, and replaces an object with the same name. Parts
    /// respect the rate limit.
    pub(super) async fn put(
        &self,
        path: &Path,
        size: u64,
        read: &impl Fn(Range<u64>) -> io::Result<Bytes>,
        limiter: Option<&RateLimiter>,
    ) -> Result<(), TransferError> {
        if size <= MAX_SINGLE_UPLOAD {
            return Ok(self.put_whole(path, read(0..size).map_err(TransferError::Io)?).await?);
        }
        for _ in 1..WRITE_ATTEMPTS {
            match self.put_in_parts(path, size, read, limiter).await {
                Err(TransferError::Uncertain) => {}
                result => return result,
            }
        }
        self.put_in_parts(path, size, read, limiter).await
    }

    async fn put_in_parts(
        &self,
        path: &Path,
        size: u64,
        read: &impl Fn(Range<u64>) -> io::Result<Bytes>,
        limiter: Option<&RateLimiter>,
    ) -> Result<(), TransferError> {
        let stall = self.retry.stall_timeout();
        let id = retrying(self.retry, stall, async || self.parts.create_multipart(path).await).await?;
        let part_bytes = UPLOAD_PART.max(size.div_ceil(MAX_PARTS));
        let parts = (0..size).step_by(part_bytes as usize).map(|start| start..size.min(start + part_bytes));
        let sends = parts.enumerate().map(async |(index, part)| {
            if let Some(limiter) = limiter {
                limiter.wait(part.end - part.start).await;
            }
            let bytes = read(part).map_err(TransferError::Io)?;
            let send = async || self.parts.put_part(path, &id, index, PutPayload::from(bytes.clone())).await;
            Ok(retrying(self.retry, self.retry.upload_timeout(bytes.len()), send).await?)
        });
        let sent: Result<Vec<_>, TransferError> = stream::iter(sends).buffered(PARALLEL_UPLOADS).try_collect().await;
        let completed = match sent {
            Ok(sent) => self.complete(path, &id, sent).await,
            Err(error) => Err(error),
        };
        if completed.is_err() {
            self.abort(path, &id).await;
        }
        completed
    }

    /// Completes a multipart upload. If an attempt whose answer was lost has succeeded, the store no longer knows the
    /// upload.
    async fn complete(&self, path: &Path, id: &MultipartId, sent: Vec<PartId>) -> Result<(), TransferError> {
        let mut attempts = Attempts::new(self.retry);
        let mut uncertain = false;
        loop {
            // The store may need long to assemble many parts.
            let complete = self.parts.complete_multipart(path, id, sent.clone());
            let Err(failure) = within(4 * self.retry.stall_timeout(), complete).await else { return Ok(()) };
            if uncertain && matches!(failure.kind, Kind::Missing | Kind::Denied(_)) {
                return Err(TransferError::Uncertain);
            }
            attempts.back_off(failure).await?;
            uncertain = true;
        }
    }
}
