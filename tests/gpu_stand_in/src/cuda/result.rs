//! The driver's result codes.

use std::ffi::{CStr, c_char};

use super::put;

/// Values of `CUresult`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum CudaResult {
    Success = 0,
    InvalidValue = 1,
    OutOfMemory = 2,
    NotInitialized = 3,
    NoDevice = 100,
    InvalidDevice = 101,
    InvalidContext = 201,
    InvalidHandle = 400,
    NotReady = 600,
}

use CudaResult::*;

const TEXTS: [(CudaResult, &CStr, &CStr); 9] = [
    (Success, c"CUDA_SUCCESS", c"no error"),
    (InvalidValue, c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
    (OutOfMemory, c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
    (NotInitialized, c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
    (NoDevice, c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected"),
    (InvalidDevice, c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
    (InvalidContext, c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
    (InvalidHandle, c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
    (NotReady, c"CUDA_ERROR_NOT_READY", c"device not ready"),
];

fn texts(error: u32) -> Option<&'static (CudaResult, &'static CStr, &'static CStr)> {
    TEXTS.iter().find(|entry| entry.0 as u32 == error)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: u32, text: *mut *const c_char) -> CudaResult {
    match texts(error) {
        // SAFETY: the caller passes a pointer to a pointer, or null.
        Some((_, name, _)) => unsafe { put(text, name.as_ptr()) },
        None => InvalidValue,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(error: u32, text: *mut *const c_char) -> CudaResult {
    match texts(error) {
        // SAFETY: the caller passes a pointer to a pointer, or null.
        Some((_, _, message)) => unsafe { put(text, message.as_ptr()) },
        None => InvalidValue,
    }
}
