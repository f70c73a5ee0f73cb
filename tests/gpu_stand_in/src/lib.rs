//! A stand-in for `libcuda.so` and `libnccl.so` on a machine without a GPU, for tests.
//!
//! Host memory stands for device memory, so a "device pointer" is any pointer, also that of a CPU tensor. Work on
//! streams is really asynchronous and really done in order, collectives really move data between processes, and both
//! can be made slow and made to fail. So a program that forgets to wait gets wrong data here as it would on a GPU, and
//! one that does not ask for asynchronous errors hangs.
//!
//! - [`cuda`]: the part of the driver's interface that cudarc resolves. A stream is a queue with a thread. The default
//!   stream is the calling thread, because that is where CPU tensors are worked on: waiting for an event there blocks.
//! - [`nccl`]: communicators between processes of one machine over shared memory, the collectives of one communicator,
//!   groups, communicators that do not block, asynchronous errors and abort.
//! - [`environment`]: the variables `ARINAR_STAND_IN_*` that a test sets.
//!
//! What it cannot show: kernels of two streams on one device that wait for each other, page-locked memory that is
//! written while it is read, anything of speed.

mod completion;
mod cuda;
mod environment;
mod nccl;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock whose holder panicked is as good as any other here: a panic in a C function ends the process anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
