//! The threads that talk to stores: one set for all stores of the process.

use std::io;
use std::sync::OnceLock;

use tokio::runtime::Runtime;

use crate::error::StoreError;

const WORKER_THREADS: usize = 2;

/// The runtime, made when first needed. Callers block on it from threads of their own.
pub(super) fn runtime() -> Result<&'static Runtime, StoreError> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made: io::Result<Runtime> = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("store")
        .enable_all()
        .build();
    let made = made.map_err(StoreError::Runtime)?;
    // Where two threads get here at once, one of the two goes away unused.
    Ok(RUNTIME.get_or_init(|| made))
}
