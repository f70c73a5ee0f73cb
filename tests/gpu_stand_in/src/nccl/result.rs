//! NCCL's result codes, and why a call failed.

use std::{
    ffi::{CStr, CString, c_char},
    sync::Mutex,
};

use crate::lock;

/// Values of `ncclResult_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NcclResult {
    Success = 0,
    UnhandledCudaError = 1,
    SystemError = 2,
    InvalidArgument = 4,
    InvalidUsage = 5,
    RemoteError = 6,
    InProgress = 7,
}

use NcclResult::*;

/// A result that is no success, with a sentence for `ncclGetLastError`.
#[derive(Clone, Debug)]
pub struct Failure {
    pub result: NcclResult,
    pub message: String,
}

impl Failure {
    pub fn new(result: NcclResult, message: impl Into<String>) -> Self {
        Self { result, message: message.into() }
    }
}

/// The code of a result; the sentence of a failure is kept for whoever asks.
pub fn told(result: Result<(), Failure>) -> NcclResult {
    match result {
        Ok(()) => Success,
        Err(failure) => {
            tell(&failure);
            failure.result
        }
    }
}

static LAST: Mutex<&'static CStr> = Mutex::new(c"");

/// Keeps the sentence of a failure, and says it where NCCL would.
pub fn tell(failure: &Failure) {
    eprintln!("NCCL stand-in: {}", failure.message);
    let text = CString::new(failure.message.replace('\0', " ")).unwrap_or_default();
    // A pointer to it may be anywhere from now on; failures are few.
    *lock(&LAST) = Box::leak(text.into_boxed_c_str());
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetLastError(_communicator: usize) -> *const c_char {
    lock(&LAST).as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetErrorString(result: u32) -> *const c_char {
    let texts = [
        (Success, c"no error"),
        (UnhandledCudaError, c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)"),
        (SystemError, c"unhandled system error (run with NCCL_DEBUG=INFO for details)"),
        (InvalidArgument, c"invalid argument (run with NCCL_DEBUG=WARN for details)"),
        (InvalidUsage, c"invalid usage (run with NCCL_DEBUG=WARN for details)"),
        (RemoteError, c"remote process exited or there was a network error"),
        (InProgress, c"NCCL operation in progress"),
    ];
    texts.iter().find(|(code, _)| *code as u32 == result).map_or(c"unknown result code", |(_, text)| text).as_ptr()
}
