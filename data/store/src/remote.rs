//! Stores in clouds: single requests, which are retried after temporary failures.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};
use tokio::time::timeout;

use crate::failure::{Failure, Kind};
use crate::retry::{Attempts, RetryPolicy, retrying, within};
use crate::secrets::Secrets;
use crate::version::Version;

/// Timeout for aborting a multipart upload, after which the caller receives the original error.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// A store in a cloud.
pub(super) struct Remote {
    pub(super) objects: Arc<dyn ObjectStore>,
    /// The same store, through the trait for multipart uploads.
    pub(super) parts: Arc<dyn MultipartStore>,
    pub(super) prefix: Path,
    pub(super) retry: RetryPolicy,
    /// Keys and tokens to remove from messages.
    pub(super) secrets: Arc<Secrets>,
}

impl Remote {
    /// Removes secrets from a failure, because a service may return them.
    pub(super) fn redacted(&self, mut failure: Failure) -> Failure {
        failure.text = self.secrets.redact(&failure.text);
        failure
    }

    pub(super) async fn put_whole(&self, path: &Path, bytes: Bytes) -> Result<(), Failure> {
        let limit = self.retry.upload_timeout(bytes.len());
        retrying(self.retry, limit, async || self.objects.put(path, PutPayload::from(bytes.clone())).await).await?;
        Ok(())
    }

    /// Writes the object if the condition of the mode holds, and returns `None` otherwise. An attempt whose answer was
    /// lost may have succeeded. If the condition fails after such an attempt, the object is compared with `bytes`.
    pub(super) async fn put_conditionally(
        &self,
        path: &Path,
        bytes: Bytes,
        mode: PutMode,
    ) -> Result<Option<Version>, Failure> {
        let limit = self.retry.upload_timeout(bytes.len());
        let mut attempts = Attempts::new(self.retry);
        let mut uncertain = false;
        loop {
            let options = PutOptions::from(mode.clone());
            let payload = PutPayload::from(bytes.clone());
            let failure = match within(limit, self.objects.put_opts(path, payload, options)).await {
                Ok(put) => return Ok(Some(Version(UpdateVersion { e_tag: put.e_tag, version: put.version }))),
                Err(failure) => failure,
            };
            match failure.kind {
                Kind::Condition if !uncertain => return Ok(None),
                Kind::Condition => {
                    return match self.get_small(path).await {
                        Ok((found, version)) => Ok((found == bytes).then_some(version)),
                        Err(failure) if failure.kind == Kind::Missing => Ok(None),
                        Err(failure) => Err(failure),
                    };
                }
                _ => {
                    attempts.back_off(failure).await?;
                    uncertain = true;
                }
            }
        }
    }

    async fn get_small(&self, path: &Path) -> Result<(Bytes, Version), Failure> {
        let (meta, bytes) = self.first_part(path).await?;
        Ok((bytes.into(), Version(UpdateVersion { e_tag: meta.e_tag, version: meta.version })))
    }

    /// Lists all objects below `path`. An interrupted listing continues after the last name received.
    pub(super) async fn list(&self, path: &Path) -> Result<Vec<ObjectMeta>, Failure> {
        let mut found: Vec<ObjectMeta> = Vec::new();
        let mut attempts = Attempts::new(self.retry);
        loop {
            let mut listing = match found.last() {
                None => self.objects.list(Some(path)),
                Some(last) => self.objects.list_with_offset(Some(path), &last.location),
            };
            let before = found.len();
            let failure = loop {
                match timeout(self.retry.stall_timeout(), listing.next()).await {
                    Ok(Some(Ok(object))) => found.push(object),
                    Ok(None) => return Ok(found),
                    Ok(Some(Err(error))) => break Failure::from(error),
                    Err(_) => break Failure::temporary("the listing stalled"),
                }
            };
            if found.len() > before {
                attempts.reset();
            }
            attempts.back_off(failure).await?;
        }
    }

    pub(super) async fn size(&self, path: &Path) -> Result<u64, Failure> {
        let head = retrying(self.retry, self.retry.stall_timeout(), async || self.objects.head(path).await).await;
        match head {
            Ok(object) => Ok(object.size),
            // An answer to HEAD has no body and cannot say why a request is refused, unlike an answer to GET.
            Err(failure)
                if matches!(failure.kind, Kind::Denied(_) | Kind::Region | Kind::Permanent | Kind::Unsupported) =>
            {
                Ok(self.first_part(path).await?.0.size)
            }
            Err(failure) => Err(failure),
        }
    }

    pub(super) async fn delete(&self, path: &Path) -> Result<(), Failure> {
        retrying(self.retry, self.retry.stall_timeout(), async || self.objects.delete(path).await).await
    }

    /// Aborts a multipart upload, so that its parts do not incur costs. Errors are ignored.
    pub(super) async fn abort(&self, path: &Path, id: &String) {
        let _ = timeout(ABORT_TIMEOUT, self.parts.abort_multipart(path, id)).await;
    }
}
