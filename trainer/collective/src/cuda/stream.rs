//! A CUDA stream beside libtorch's, and waiting for events.

use std::{sync::Arc, time::Duration};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, sys};

use super::error::CudaError;

/// Number of polls before the first sleep, and the duration of a sleep.
const SPINS: u32 = 200;
const SLEEP: Duration = Duration::from_micros(20);

/// A stream whose work runs concurrently with libtorch's.
#[derive(Debug)]
pub struct SideStream {
    libtorch: Arc<CudaStream>,
    own: Arc<CudaStream>,
}

impl SideStream {
    pub(super) fn new(libtorch: Arc<CudaStream>, own: Arc<CudaStream>) -> Self {
        Self { libtorch, own }
    }

    /// Makes work submitted to this stream from now on wait for all work submitted to libtorch so far.
    ///
    /// # Errors
    /// Returns an error if the driver rejects the call.
    pub fn after_libtorch(&self) -> Result<(), CudaError> {
        Ok(self.own.join(&self.libtorch)?)
    }

    /// Makes work submitted to libtorch from now on wait for all work submitted to this stream so far. The returned event
    /// completes when that work is done.
    ///
    /// # Errors
    /// Returns an error if the driver rejects the call.
    pub fn before_libtorch(&self) -> Result<CudaEvent, CudaError> {
        let done = self.own.record_event(None)?;
        self.libtorch.wait(&done)?;
        Ok(done)
    }

    /// Returns the raw stream for C libraries that submit work to it.
    pub fn raw(&self) -> sys::CUstream {
        self.own.cu_stream()
    }

    pub(super) fn own(&self) -> &CudaStream {
        &self.own
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        self.own.context()
    }
}

/// Waits for an event. Calls `check` between polls, so that the wait ends if the event can no longer occur.
///
/// # Errors
/// Returns the error of `check`, or an error reported by CUDA.
pub(crate) fn wait<E: From<CudaError>>(done: &CudaEvent, mut check: impl FnMut() -> Result<(), E>) -> Result<(), E> {
    let mut polls = 0;
    while !done.try_is_complete().map_err(CudaError::from)? {
        check()?;
        pause(&mut polls);
    }
    Ok(())
}

/// Pauses between two polls of a condition that is expected soon: yields first, and sleeps after some polls.
pub(crate) fn pause(polls: &mut u32) {
    if *polls < SPINS {
        *polls += 1;
        std::thread::yield_now();
    } else {
        std::thread::sleep(SLEEP);
    }
}
