//! A store in a cloud: single requests, each tried again where that may help.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};
use tokio::time::timeout;

use crate::Version;
use crate::failure::{Failure, Kind};
use crate::retry::{Attempts, Patience, retrying, within};
use crate::secrets::Secrets;

/// Longest that giving up an upload in parts may take: whoever waits has an error to hear of.
const ABORT: Duration = Duration::from_secs(5);

/// A folder in a cloud.
pub(super) struct Remote {
    pub(super) objects: Arc<dyn ObjectStore>,
    /// The same store; uploads in parts are the business of another trait.
    pub(super) parts: Arc<dyn MultipartStore>,
    pub(super) prefix: Path,
    pub(super) patience: Patience,
    /// Keys and tokens, which are removed from every message.
    pub(super) secrets: Arc<Secrets>,
}

impl Remote {
    /// A message without secrets, whatever a service may echo.
    pub(super) fn scrubbed(&self, mut failure: Failure) -> Failure {
        failure.text = self.secrets.redact(&failure.text);
        failure
    }

    pub(super) async fn put_whole(&self, path: &Path, bytes: Bytes) -> Result<(), Failure> {
        let limit = self.patience.upload(bytes.len());
        retrying(self.patience, limit, async || self.objects.put(path, PutPayload::from(bytes.clone())).await).await?;
        Ok(())
    }

    /// Writes the object if the mode's condition holds; None if it does not. An attempt whose answer got lost may have
    /// succeeded: a condition that fails after it is believed only if the object is not what was to be written.
    pub(super) async fn put_conditionally(
        &self,
        path: &Path,
        bytes: Bytes,
        mode: PutMode,
    ) -> Result<Option<Version>, Failure> {
        let limit = self.patience.upload(bytes.len());
        let mut attempts = Attempts::new(self.patience);
        let mut doubtful = false;
        loop {
            let options = PutOptions::from(mode.clone());
            let payload = PutPayload::from(bytes.clone());
            let failure = match within(limit, self.objects.put_opts(path, payload, options)).await {
                Ok(put) => return Ok(Some(Version(UpdateVersion { e_tag: put.e_tag, version: put.version }))),
                Err(failure) => failure,
            };
            match failure.kind {
                Kind::Condition if !doubtful => return Ok(None),
                Kind::Condition => {
                    return match self.get_small(path).await {
                        Ok((found, version)) => Ok((found == bytes).then_some(version)),
                        Err(failure) if failure.kind == Kind::Missing => Ok(None),
                        Err(failure) => Err(failure),
                    };
                }
                _ => {
                    attempts.again(failure).await?;
                    doubtful = true;
                }
            }
        }
    }

    async fn get_small(&self, path: &Path) -> Result<(Bytes, Version), Failure> {
        let (meta, bytes) = self.first_part(path).await?;
        Ok((bytes.into(), Version(UpdateVersion { e_tag: meta.e_tag, version: meta.version })))
    }

    /// Lists all below `path`. A listing that breaks goes on after the last name that came.
    pub(super) async fn list(&self, path: &Path) -> Result<Vec<ObjectMeta>, Failure> {
        let mut found: Vec<ObjectMeta> = Vec::new();
        let mut attempts = Attempts::new(self.patience);
        loop {
            let mut listing = match found.last() {
                None => self.objects.list(Some(path)),
                Some(last) => self.objects.list_with_offset(Some(path), &last.location),
            };
            let before = found.len();
            let failure = loop {
                match timeout(self.patience.stall(), listing.next()).await {
                    Ok(Some(Ok(object))) => found.push(object),
                    Ok(None) => return Ok(found),
                    Ok(Some(Err(error))) => break Failure::from(error),
                    Err(_) => break Failure::passing("the listing stalled"),
                }
            };
            if found.len() > before {
                attempts.progress();
            }
            attempts.again(failure).await?;
        }
    }

    pub(super) async fn size(&self, path: &Path) -> Result<u64, Failure> {
        let head = retrying(self.patience, self.patience.stall(), async || self.objects.head(path).await).await;
        match head {
            Ok(object) => Ok(object.size),
            // The answer to HEAD has no body, so it cannot say why access is denied; the answer to GET does.
            Err(failure) if failure.kind == Kind::Denied => Ok(self.first_part(path).await?.0.size),
            Err(failure) => Err(failure),
        }
    }

    pub(super) async fn delete(&self, path: &Path) -> Result<(), Failure> {
        retrying(self.patience, self.patience.stall(), async || self.objects.delete(path).await).await
    }

    /// Gives up an upload in parts, so that nobody pays for its remains; as good as it goes.
    pub(super) async fn abort(&self, path: &Path, id: &String) {
        let _ = timeout(ABORT, self.parts.abort_multipart(path, id)).await;
    }
}
