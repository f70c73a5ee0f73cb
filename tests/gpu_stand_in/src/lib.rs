//! A stand-in for `libcuda.so` and `libnccl.so` on a machine without a GPU, for tests.
//!
//! Host memory takes the place of device memory, so a "device pointer" is any pointer, also that of a CPU tensor. Work
//! on streams is asynchronous and in order, collectives move data between processes, and both can be delayed and made
//! to fail. A program that forgets to wait therefore gets wrong data, as on a GPU, and one that does not poll for
//! asynchronous errors hangs.
//!
//! - [`cuda`]: the part of the driver's interface that cudarc resolves. A stream is a queue with a thread. The default
//!   stream is the calling thread, which works on CPU tensors, so waiting for an event there blocks.
//! - [`nccl`]: communicators between processes of one host over shared memory, the collectives of one communicator,
//!   groups, non-blocking communicators, asynchronous errors and abort.
//! - [`environment`]: the variables `ARINAR_STAND_IN_*` that a test sets.
//!
//! The stand-in cannot reveal deadlocks between kernels of two streams on one device, writes to page-locked memory that
//! is being read, or anything about speed.

mod completion;
mod cuda;
mod environment;
mod nccl;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex. Poisoning is ignored, because a panic in a C function ends the process anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
