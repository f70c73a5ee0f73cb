//! A non-blocking NCCL communicator: a call that takes long returns "in progress", so that the failure of a peer is
//! detected and the communicator can be aborted at any time.
//!
//! As NCCL's user guide requires, after a call that is in progress no other call is made on the communicator, and no
//! dependent work is submitted to a stream, until `ncclCommGetAsyncError` reports success
//! ([`Communicator::wait_until_settled`]).

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int, c_void},
    mem::size_of,
    ptr,
    sync::OnceLock,
};

use cudarc::{
    driver,
    nccl::sys::{self, ncclComm_t, ncclConfig_t, ncclResult_t, ncclUniqueId},
};

use crate::{
    cuda::{Gpu, pause},
    error::CollectiveError,
};

/// The magic number in `NCCL_CONFIG_INITIALIZER` of `nccl.h`.
const CONFIG_MAGIC: u32 = 0xcafe_beef;
/// `NCCL_CONFIG_UNDEF_INT` of `nccl.h`: use the default.
const UNDEFINED: c_int = c_int::MIN;

/// NCCL 2.14, the first version with non-blocking communicators.
const OLDEST: c_int = 21_400;

/// One rank of a group.
pub(super) struct Communicator {
    /// Never null.
    raw: ncclComm_t,
    /// True once it is aborted or destroyed.
    ended: Cell<bool>,
}

/// Returns the version number of NCCL, for example 22907 for 2.29.7.
pub(super) fn version() -> Result<c_int, CollectiveError> {
    require_library()?;
    let mut version = 0;
    // SAFETY: the library is loaded; it writes one integer.
    let result = unsafe { sys::ncclGetVersion(&mut version) };
    expect(result, "its version is queried", None)?;
    Ok(version)
}

/// Creates the unique id that rank 0 sends to the other ranks.
pub(super) fn unique_id() -> Result<Vec<u8>, CollectiveError> {
    require_library()?;
    let mut id = ncclUniqueId { internal: [0; 128] };
    // SAFETY: the library is loaded; it writes the id.
    let result = unsafe { sys::ncclGetUniqueId(&mut id) };
    expect(result, "a unique id is created", None)?;
    Ok(id.internal.iter().map(|&byte| byte as u8).collect())
}

/// Returns an error if the library is missing. Without this check, cudarc would panic.
fn require_library() -> Result<(), CollectiveError> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: loads NCCL, whose initializers only read the environment, and unloads it. Checked only once, so that it is
    // never unloaded while cudarc, which then loads it permanently, uses it.
    let present = *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() });
    if present { Ok(()) } else { Err(CollectiveError::NcclMissing) }
}

/// Returns an error if the library is too old to have all the calls used here, as another installation on the library path
/// may be. Without this check, cudarc would panic.
pub(super) fn require_calls() -> Result<(), CollectiveError> {
    match version()? {
        version if version >= OLDEST => Ok(()),
        version => Err(CollectiveError::NcclTooOld { version }),
    }
}

impl Communicator {
    /// Joins the group; returns when all ranks have joined.
    pub(super) fn join(gpu: &Gpu, id: &[u8], rank: usize, world: usize) -> Result<Self, CollectiveError> {
        require_library()?;
        gpu.make_current()?;
        let mut id_of_nccl = ncclUniqueId { internal: [0; 128] };
        for (to, &from) in id_of_nccl.internal.iter_mut().zip(id) {
            *to = from as c_char;
        }
        let mut config = non_blocking();
        let mut raw: ncclComm_t = ptr::null_mut();
        // SAFETY: all pointers refer to locals of the types that NCCL expects, and `config` contains its own size. NCCL uses
        // the current GPU.
        let result =
            unsafe { sys::ncclCommInitRankConfig(&mut raw, world as c_int, id_of_nccl, rank as c_int, &mut config) };
        let during = "ranks join";
        if raw.is_null() {
            expect(result, during, None)?;
            return Err(CollectiveError::Nccl { during, what: "no communicator was created".to_owned() });
        }
        let communicator = Self { raw, ended: Cell::new(false) };
        let joined = communicator.wait_until_settled(result, during);
        if joined.is_err() {
            communicator.abort();
        }
        joined.map(|()| communicator)
    }

    /// Replaces a buffer by its sum over all ranks.
    ///
    /// # Safety
    /// `address` must point to `elements` float32 values in the memory of the GPU. They must not be used otherwise until the
    /// work submitted to `stream` is done or the communicator is aborted.
    pub(super) unsafe fn all_reduce_sum(
        &self,
        address: *mut f32,
        elements: usize,
        stream: driver::sys::CUstream,
    ) -> Result<(), CollectiveError> {
        let during = "gradients are summed";
        self.usable(during)?;
        let (kind, sum) = (sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
        let buffer = address.cast::<c_void>();
        // SAFETY: guaranteed by the caller; the communicator has not ended. The two stream types are the same.
        let result = unsafe { sys::ncclAllReduce(buffer, buffer, elements, kind, sum, self.raw, stream.cast()) };
        self.wait_until_settled(result, during)
    }

    /// Replaces a buffer by that of rank `root`.
    ///
    /// # Safety
    /// As [`Self::all_reduce_sum`].
    pub(super) unsafe fn broadcast(
        &self,
        address: *mut f32,
        elements: usize,
        root: usize,
        stream: driver::sys::CUstream,
    ) -> Result<(), CollectiveError> {
        let during = "weights are broadcast";
        self.usable(during)?;
        let (kind, root) = (sys::ncclDataType_t::ncclFloat32, root as c_int);
        let buffer = address.cast::<c_void>();
        // SAFETY: as in `all_reduce_sum`.
        let result = unsafe { sys::ncclBroadcast(buffer, buffer, elements, kind, root, self.raw, stream.cast()) };
        self.wait_until_settled(result, during)
    }

    /// Returns an error that was detected since the last call, such as the failure of a peer.
    pub(super) fn check(&self) -> Result<(), CollectiveError> {
        let during = "other ranks are waited for";
        self.usable(during)?;
        self.expect(self.state(during)?, during)
    }

    /// Aborts calls that will never finish. Every later call returns an error.
    pub(super) fn abort(&self) {
        if !self.ended.replace(true) {
            // SAFETY: the communicator is alive and is marked so that it is not used again. An error can be ignored, because
            // the process is about to exit.
            let _ = unsafe { sys::ncclCommAbort(self.raw) };
        }
    }

    /// Waits until a call is no longer in progress.
    fn wait_until_settled(&self, result: ncclResult_t, during: &'static str) -> Result<(), CollectiveError> {
        let mut state = result;
        let mut polls = 0;
        while state == ncclResult_t::ncclInProgress {
            pause(&mut polls);
            state = self.state(during)?;
        }
        self.expect(state, during)
    }

    fn state(&self, during: &'static str) -> Result<ncclResult_t, CollectiveError> {
        let mut state = ncclResult_t::ncclSuccess;
        // SAFETY: the communicator has not ended; NCCL writes one of its result codes.
        let status = unsafe { sys::ncclCommGetAsyncError(self.raw, &mut state) };
        self.expect(status, during)?;
        Ok(state)
    }

    /// Returns an error for any result other than success or in progress.
    fn expect(&self, result: ncclResult_t, during: &'static str) -> Result<(), CollectiveError> {
        match result {
            ncclResult_t::ncclInProgress => Ok(()),
            other => expect(other, during, Some(self.raw)),
        }
    }

    fn usable(&self, during: &'static str) -> Result<(), CollectiveError> {
        if self.ended.get() {
            return Err(CollectiveError::Nccl { during, what: "it was ended after an earlier error".to_owned() });
        }
        Ok(())
    }

    /// Finalizes the communicator together with all other ranks. Every later call returns an error.
    pub(super) fn finalize(&self) -> Result<(), CollectiveError> {
        let during = "ranks leave";
        self.usable(during)?;
        let finalized = self.finalize_and_destroy(during);
        if finalized.is_err() {
            self.abort();
        }
        finalized
    }

    fn finalize_and_destroy(&self, during: &'static str) -> Result<(), CollectiveError> {
        // SAFETY: the communicator is alive and no call is in progress, because each call was waited for.
        self.wait_until_settled(unsafe { sys::ncclCommFinalize(self.raw) }, during)?;
        self.ended.set(true);
        // SAFETY: finalised above, and marked so that it is not used again.
        expect(unsafe { sys::ncclCommDestroy(self.raw) }, during, None)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // Does nothing after `finalize`.
        self.abort();
    }
}

/// Returns the default configuration with non-blocking calls.
fn non_blocking() -> ncclConfig_t {
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        // The version of the header that a test compares it with. A library of another version reads the fields it knows.
        version: 22_907,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
        graphUsageMode: UNDEFINED,
        numRmaCtx: UNDEFINED,
    }
}

/// Returns an error with NCCL's message for any result other than success.
fn expect(result: ncclResult_t, during: &'static str, raw: Option<ncclComm_t>) -> Result<(), CollectiveError> {
    if result == ncclResult_t::ncclSuccess {
        return Ok(());
    }
    // SAFETY: the library is loaded, since it returned a result; it returns a static string.
    let mut what = unsafe { text(sys::ncclGetErrorString(result)) };
    if let Some(raw) = raw {
        // SAFETY: the communicator is alive; the string is copied before the next call.
        let detail = unsafe { text(sys::ncclGetLastError(raw)) };
        if !detail.is_empty() {
            what = format!("{what} ({detail})");
        }
    }
    Err(CollectiveError::Nccl { during, what })
}

/// Copies a C string and joins its lines; empty for a null pointer.
///
/// # Safety
/// `text` must be null or a zero-terminated string that is valid during the call.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: guaranteed by the caller.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{path::Path, process::Command};

    use super::*;

    /// Prints the bytes of a non-blocking configuration as NCCL's own header initializes it.
    const PROGRAM: &str = r#"
        #include <nccl.h>
        #include <stdio.h>
        int main(void) {
            ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
            config.blocking = 0;
            return fwrite(&config, 1, sizeof config, stdout) != sizeof config;
        }
    "#;

    #[test]
    fn the_configuration_matches_the_header() {
        let torch = std::env::var("LIBTORCH").expect("set by ops/env.sh");
        let wheels = Path::new(&torch).parent().unwrap().join("nvidia");
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("config.c"), folder.path().join("config"));
        std::fs::write(&source, PROGRAM).unwrap();
        // A substitute for CUDA's headers with the types that NCCL's header uses. The real headers include parts of the
        // compiler that no wheel contains.
        std::fs::write(
            folder.path().join("cuda_runtime.h"),
            "#include <stddef.h>\ntypedef struct CUstream_st *cudaStream_t;",
        )
        .unwrap();
        std::fs::write(folder.path().join("cuda_fp16.h"), "").unwrap();
        let mut compiler = Command::new("cc");
        compiler.arg("-I").arg(folder.path()).arg("-I").arg(wheels.join("nccl/include"));
        assert!(compiler.arg(&source).arg("-o").arg(&program).status().unwrap().success());
        let expected = Command::new(program).output().unwrap().stdout;
        let ours = non_blocking();
        // SAFETY: the structure has no padding: eight-byte fields follow an even number of four-byte ones.
        let ours = unsafe { std::slice::from_raw_parts((&raw const ours).cast::<u8>(), size_of::<ncclConfig_t>()) };
        assert_eq!(ours, expected);
    }
}
