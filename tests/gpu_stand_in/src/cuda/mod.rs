//! The part of the CUDA driver's interface that cudarc calls. Handles are keys of a table, so using a destroyed handle
//! is an error and never a wild pointer.

pub(crate) mod device;
mod event;
mod memory;
pub(crate) mod result;
pub(crate) mod stream;

use result::CudaResult;

/// Writes a result to the caller's memory.
///
/// # Safety
/// `out` must be null or valid for writing a `T`.
unsafe fn put<T>(out: *mut T, value: T) -> CudaResult {
    if out.is_null() {
        return CudaResult::InvalidValue;
    }
    // SAFETY: the pointer is not null, so the caller guarantees that it is valid for the write.
    unsafe { out.write(value) };
    CudaResult::Success
}

/// Converts a result to the driver's code.
fn code(result: Result<(), CudaResult>) -> CudaResult {
    result.err().unwrap_or(CudaResult::Success)
}
