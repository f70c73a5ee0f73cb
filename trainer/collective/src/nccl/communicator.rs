//! One rank's NCCL communicator. It is a non-blocking one: a call that takes long says "in progress", so that a peer
//! that fails is noticed and the communicator can be aborted, whatever it is busy with.
//!
//! The contract is that of NCCL's guide: after a call that is in progress no other is made on the communicator, and
//! nothing that depends on it is put on a stream, until `ncclCommGetAsyncError` says success ([`Communicator::settle`]).

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
    collective::CollectiveError,
    cuda::{Gpu, pause},
};

/// Of `nccl.h`: what `NCCL_CONFIG_INITIALIZER` writes.
const CONFIG_MAGIC: u32 = 0xcafe_beef;
/// Of `nccl.h`: "take the default".
const UNDEFINED: c_int = c_int::MIN;

/// Non-blocking communicators came with NCCL 2.14.
const OLDEST: c_int = 21_400;

/// A member of a group of ranks.
pub(super) struct Communicator {
    /// Never null.
    raw: ncclComm_t,
    /// Aborted or destroyed.
    ended: Cell<bool>,
}

/// Version of NCCL, 22907 for 2.29.7.
pub(super) fn version() -> Result<c_int, CollectiveError> {
    require_library()?;
    let mut version = 0;
    // SAFETY: the library is there; it writes one integer.
    let result = unsafe { sys::ncclGetVersion(&mut version) };
    expect(result, "its version is asked for", None)?;
    Ok(version)
}

/// What rank 0 sends the others, so that they find each other.
pub(super) fn unique_id() -> Result<Vec<u8>, CollectiveError> {
    require_library()?;
    let mut id = ncclUniqueId { internal: [0; 128] };
    // SAFETY: the library is there; it writes the id.
    let result = unsafe { sys::ncclGetUniqueId(&mut id) };
    expect(result, "a unique id is made", None)?;
    Ok(id.internal.iter().map(|&byte| byte as u8).collect())
}

/// cudarc panics where the library is missing.
fn require_library() -> Result<(), CollectiveError> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: loads NCCL, whose initialisers read the environment alone, and unloads it; asked once, so that it is never
    // unloaded while cudarc, which then loads it for good, uses it.
    let present = *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() });
    if present { Ok(()) } else { Err(CollectiveError::NcclMissing) }
}

/// cudarc panics where the library lacks a call, as one does that is found before libtorch's and is much older.
pub(super) fn require_calls() -> Result<(), CollectiveError> {
    match version()? {
        version if version >= OLDEST => Ok(()),
        version => Err(CollectiveError::NcclTooOld { version }),
    }
}

impl Communicator {
    /// Meets the other ranks; returns when all are there.
    pub fn join(gpu: &Gpu, id: &[u8], rank: usize, world: usize) -> Result<Self, CollectiveError> {
        require_library()?;
        gpu.make_current()?;
        let mut id_of_nccl = ncclUniqueId { internal: [0; 128] };
        for (to, &from) in id_of_nccl.internal.iter_mut().zip(id) {
            *to = from as c_char;
        }
        let mut config = non_blocking();
        let mut raw: ncclComm_t = ptr::null_mut();
        // SAFETY: all pointers are to locals of the types that NCCL expects; `config` carries its own size. NCCL joins
        // the GPU that is current.
        let result =
            unsafe { sys::ncclCommInitRankConfig(&mut raw, world as c_int, id_of_nccl, rank as c_int, &mut config) };
        let during = "ranks join";
        if raw.is_null() {
            expect(result, during, None)?;
            return Err(CollectiveError::Nccl { during, what: "no communicator was made".to_owned() });
        }
        let communicator = Self { raw, ended: Cell::new(false) };
        let joined = communicator.settle(result, during);
        if joined.is_err() {
            communicator.abort();
        }
        joined.map(|()| communicator)
    }

    /// Sums in place over all ranks.
    ///
    /// # Safety
    /// `address` points to `elements` float32 in memory of the GPU, which nobody else uses until what is on `stream`
    /// by then is done or the communicator is aborted.
    pub unsafe fn all_reduce_sum(
        &self,
        address: *mut f32,
        elements: usize,
        stream: driver::sys::CUstream,
    ) -> Result<(), CollectiveError> {
        let during = "gradients are summed";
        self.usable(during)?;
        let (kind, sum) = (sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
        let buffer = address.cast::<c_void>();
        // SAFETY: the caller's promise; the communicator has not ended. The two stream types are one.
        let result = unsafe { sys::ncclAllReduce(buffer, buffer, elements, kind, sum, self.raw, stream.cast()) };
        self.settle(result, during)
    }

    /// Overwrites with what rank `root` has.
    ///
    /// # Safety
    /// As [`Self::all_reduce_sum`].
    pub unsafe fn broadcast(
        &self,
        address: *mut f32,
        elements: usize,
        root: usize,
        stream: driver::sys::CUstream,
    ) -> Result<(), CollectiveError> {
        let during = "weights are passed on";
        self.usable(during)?;
        let (kind, root) = (sys::ncclDataType_t::ncclFloat32, root as c_int);
        let buffer = address.cast::<c_void>();
        // SAFETY: as in `all_reduce_sum`.
        let result = unsafe { sys::ncclBroadcast(buffer, buffer, elements, kind, root, self.raw, stream.cast()) };
        self.settle(result, during)
    }

    /// An error that came to light since the last call, a peer's end among them.
    pub fn check(&self) -> Result<(), CollectiveError> {
        let during = "other ranks are waited for";
        self.usable(during)?;
        self.expect(self.state(during)?, during)
    }

    /// Frees the GPU from calls that will never end. Every call after it is an error.
    pub fn abort(&self) {
        if !self.ended.replace(true) {
            // SAFETY: the communicator is alive, and marked so that it is not used again. There is nothing to do about
            // an error: the process ends anyway.
            let _ = unsafe { sys::ncclCommAbort(self.raw) };
        }
    }

    /// Waits until a call is no longer in progress.
    fn settle(&self, result: ncclResult_t, during: &'static str) -> Result<(), CollectiveError> {
        let mut state = result;
        let mut looks = 0;
        while state == ncclResult_t::ncclInProgress {
            pause(&mut looks);
            state = self.state(during)?;
        }
        self.expect(state, during)
    }

    fn state(&self, during: &'static str) -> Result<ncclResult_t, CollectiveError> {
        let mut state = ncclResult_t::ncclSuccess;
        // SAFETY: the communicator has not ended; NCCL writes one of its results.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.raw, &mut state) };
        self.expect(asked, during)?;
        Ok(state)
    }

    /// In progress is no error.
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

    /// Ends the communicator in order, together with all other ranks. Every call after it is an error.
    pub fn part(&self) -> Result<(), CollectiveError> {
        let during = "ranks part";
        self.usable(during)?;
        let parted = self.finalize(during);
        if parted.is_err() {
            self.abort();
        }
        parted
    }

    fn finalize(&self, during: &'static str) -> Result<(), CollectiveError> {
        // SAFETY: the communicator is alive and nothing is under way on it: each call was waited for.
        self.settle(unsafe { sys::ncclCommFinalize(self.raw) }, during)?;
        self.ended.set(true);
        // SAFETY: finalised above, and marked so that it is not used again.
        expect(unsafe { sys::ncclCommDestroy(self.raw) }, during, None)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // Whoever wants to part in order has done so.
        self.abort();
    }
}

/// The default configuration, but non-blocking.
fn non_blocking() -> ncclConfig_t {
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        // Of the header that it is compared with; a library of another version reads what it knows.
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

/// An error for anything but success, with NCCL's own words.
fn expect(result: ncclResult_t, during: &'static str, raw: Option<ncclComm_t>) -> Result<(), CollectiveError> {
    if result == ncclResult_t::ncclSuccess {
        return Ok(());
    }
    // SAFETY: the library is there, since it gave a result; it answers with a constant text.
    let mut what = unsafe { text(sys::ncclGetErrorString(result)) };
    if let Some(raw) = raw {
        // SAFETY: the communicator is alive; the text is NCCL's and is copied before the next call.
        let detail = unsafe { text(sys::ncclGetLastError(raw)) };
        if !detail.is_empty() {
            what = format!("{what} ({detail})");
        }
    }
    Err(CollectiveError::Nccl { during, what })
}

/// A copy of a C text on one line; empty for none.
///
/// # Safety
/// `text` is null or a zero-terminated text that lives through the call.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{path::Path, process::Command};

    use super::*;

    /// Prints the bytes of what NCCL's own header makes of a configuration that is non-blocking.
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
    fn the_configuration_is_the_headers() {
        let torch = std::env::var("LIBTORCH").expect("set by ops/env.sh");
        let wheels = Path::new(&torch).parent().unwrap().join("nvidia");
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("config.c"), folder.path().join("config"));
        std::fs::write(&source, PROGRAM).unwrap();
        // All that NCCL's header wants of CUDA's, which needs parts of the compiler that no wheel has.
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
