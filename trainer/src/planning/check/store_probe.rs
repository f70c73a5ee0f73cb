//! The probe of a store: list, put, get and delete.

use arinar_store::{Environment, RETRY_TIMEOUT_VARIABLE, Store, StoreError};

/// For how many seconds a request that fails is retried, unless the user has set it. A run retries longer; the user of a check
/// is waiting.
const RETRY_SECONDS: &str = "10";

/// Opens a store for a check.
///
/// # Errors
/// Returns an error if the URL or the credentials cannot be used.
pub(crate) fn open(url: &str) -> Result<Store, StoreError> {
    Store::open_with(url, &Environment::from_process().with_default(RETRY_TIMEOUT_VARIABLE, RETRY_SECONDS))
}

/// Lists the store, and puts, gets and deletes a small object in it.
///
/// # Errors
/// Returns the error of the first operation that fails.
pub(crate) fn probe(store: &Store) -> Result<(), StoreError> {
    // Start-up lists the checkpoints before it writes anything. Some stores would create a missing bucket on a put.
    store.list("")?;
    let mut object = ProbeObject { store, name: object_name() };
    let contents = object.name.clone().into_bytes();
    // Not a conditional put, which the check of the lease tries.
    if store.exists(&object.name)? {
        // The object belongs to another process, so it is not deleted.
        let url = store.url_of(&std::mem::take(&mut object.name));
        return Err(StoreError::Other { url, source: "it exists already; delete it and check again".into() });
    }
    store.put(&object.name, contents.clone())?;
    let found = store.get(&object.name)?;
    if found != contents {
        let (url, bytes) = (store.url_of(&object.name), found.len() as u64);
        return Err(StoreError::Size { url, expected: contents.len() as u64, found: bytes });
    }
    store.delete(&object.name)
}

fn object_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let letters: String = host.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("check-{letters}-{}.tmp", std::process::id())
}

/// An object that is deleted when it is dropped, unless its name is empty.
struct ProbeObject<'a> {
    store: &'a Store,
    name: String,
}

impl Drop for ProbeObject<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // If it cannot be deleted, the probe has already reported that.
            let _ = self.store.delete(&self.name);
        }
    }
}
