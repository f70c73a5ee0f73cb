//! The CUDA driver's interface, as far as cudarc calls it. Handles are numbers that are looked up, so a handle that was
//! destroyed is an error and never a wild pointer.

pub mod device;
mod event;
mod memory;
pub mod result;
pub mod stream;

use result::CudaResult;

/// Stores a result where the caller wants it.
///
/// # Safety
/// `place` is null or valid for a write of a `T`.
unsafe fn put<T>(place: *mut T, value: T) -> CudaResult {
    if place.is_null() {
        return CudaResult::InvalidValue;
    }
    // SAFETY: not null, so valid for the write (the caller's promise).
    unsafe { place.write(value) };
    CudaResult::Success
}

/// The part of a C function that may end early.
fn code(result: Result<(), CudaResult>) -> CudaResult {
    result.err().unwrap_or(CudaResult::Success)
}
