//! NCCL's result codes and the messages of failures.

use std::{
    ffi::{CStr, CString, c_char},
    sync::Mutex,
};

use crate::lock;

/// Values of `ncclResult_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum NcclResult {
    Success = 0,
    UnhandledCudaError = 1,
    SystemError = 2,
    InvalidArgument = 4,
    InvalidUsage = 5,
    RemoteError = 6,
    InProgress = 7,
}

use NcclResult::*;

/// An error code with a message for `ncclGetLastError`.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) result: NcclResult,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(result: NcclResult, message: impl Into<String>) -> Self {
        Self { result, message: message.into() }
    }
}

/// Converts a result to its code, and records a failure for `ncclGetLastError`.
pub(crate) fn to_code(result: Result<(), Failure>) -> NcclResult {
    match result {
        Ok(()) => Success,
        Err(failure) => {
            record_failure(&failure);
            failure.result
        }
    }
}

static LAST_MESSAGE: Mutex<&'static CStr> = Mutex::new(c"");

/// Records the message of a failure for `ncclGetLastError` and prints it to standard error.
pub(crate) fn record_failure(failure: &Failure) {
    eprintln!("NCCL stand-in: {}", failure.message);
    let text = CString::new(failure.message.replace('\0', " ")).unwrap_or_default();
    // Leak the message, because the program may keep a pointer to it. Failures are rare.
    *lock(&LAST_MESSAGE) = Box::leak(text.into_boxed_c_str());
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetLastError(_communicator: usize) -> *const c_char {
    lock(&LAST_MESSAGE).as_ptr()
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
