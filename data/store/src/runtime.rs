//! The threads that send requests, shared by all stores of the process.

use std::io;
use std::sync::OnceLock;

use tokio::runtime::Runtime;

use crate::error::StoreError;

const WORKER_THREADS: usize = 2;

/// Returns the runtime, which is created on first use. Callers block on it from their own threads.
pub(super) fn runtime() -> Result<&'static Runtime, StoreError> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let created: io::Result<Runtime> = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("store")
        .enable_all()
        .build();
    let created = created.map_err(StoreError::Runtime)?;
    // If two threads arrive at the same time, one of the two runtimes is dropped unused.
    Ok(RUNTIME.get_or_init(|| created))
}
