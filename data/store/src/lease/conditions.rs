//! A check that a store in a cloud keeps two writers apart: that it honours the conditions of conditional puts.

use bytes::Bytes;

use super::error::LeaseError;
use crate::error::StoreError;
use crate::store::Store;
use crate::version::Version;

/// Checks with a new object, which is deleted again, that an object is created only once and that a version of it is
/// replaced only once.
///
/// # Errors
/// Returns [`LeaseError::NoConditions`] if the store ignores or rejects a condition, or the error of the store.
pub(super) fn check(store: &Store) -> Result<(), LeaseError> {
    let object = ProbeObject::new(store);
    let first = object.create("first")?.ok_or_else(|| object.lacks("a new object is reported as existing"))?;
    if object.create("another")?.is_some() {
        return Err(object.lacks("it ignores the condition If-None-Match"));
    }
    let second = object.replace("second", &first)?;
    if second.is_none() {
        return Err(object.lacks("it rejects the condition If-Match for the version that it has reported"));
    }
    // The first version is replaced already.
    if object.replace("third", &first)?.is_some() {
        return Err(object.lacks("it ignores the condition If-Match"));
    }
    object.delete()
}

/// An object with a name of its own. It is deleted on drop.
struct ProbeObject<'a> {
    store: &'a Store,
    name: String,
}

impl<'a> ProbeObject<'a> {
    fn new(store: &'a Store) -> Self {
        Self { store, name: format!("lease-probe-{:016x}.tmp", rand::random::<u64>()) }
    }

    fn create(&self, text: &'static str) -> Result<Option<Version>, LeaseError> {
        self.understood(self.store.create(&self.name, Bytes::from_static(text.as_bytes())))
    }

    fn replace(&self, text: &'static str, version: &Version) -> Result<Option<Version>, LeaseError> {
        self.understood(self.store.replace(&self.name, Bytes::from_static(text.as_bytes()), version))
    }

    /// A store that rejects a put with a condition and accepts one without does not know the condition.
    fn understood<T>(&self, result: Result<T, StoreError>) -> Result<T, LeaseError> {
        match result {
            Err(StoreError::Unsupported { source, .. }) => Err(self.lacks(&source.to_string())),
            Err(StoreError::Other { source, .. }) if self.store.put(&self.name, "plain").is_ok() => {
                Err(self.lacks(&source.to_string()))
            }
            result => Ok(result?),
        }
    }

    fn lacks(&self, reason: &str) -> LeaseError {
        LeaseError::NoConditions { url: self.store.url().to_owned(), reason: reason.to_owned() }
    }

    fn delete(mut self) -> Result<(), LeaseError> {
        let name = std::mem::take(&mut self.name);
        Ok(self.store.delete(&name)?)
    }
}

impl Drop for ProbeObject<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // The caller already has a more important error.
            let _ = self.store.delete(&self.name);
        }
    }
}
