//! The unique id of a communicator, which identifies its shared memory.
//!
//! The memory is an anonymous file that the creator of the id keeps open. The other ranks open it through /proc when
//! they join. Nothing needs to be cleaned up, even if a process is killed.

use std::{
    collections::BTreeMap,
    ffi::CStr,
    fs::{File, OpenOptions},
    os::fd::AsRawFd,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    process::Process,
    result::{
        Failure,
        NcclResult::{self, *},
        to_code,
    },
    segment,
};
use crate::lock;

const LENGTH: usize = 128;

/// `ncclUniqueId`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct UniqueId([u8; LENGTH]);

/// The contents of a unique id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rendezvous {
    pub(crate) creator: Process,
    descriptor: i32,
    /// A number that is different for every id created on a host.
    pub(crate) nonce: u64,
}

/// The files of ids whose ranks have not all joined.
static OPEN: Mutex<BTreeMap<u64, File>> = Mutex::new(BTreeMap::new());

impl Rendezvous {
    fn create() -> Result<Self, Failure> {
        static CREATED: AtomicU64 = AtomicU64::new(0);
        let failed = |error: std::io::Error| Failure::new(SystemError, format!("shared memory: {error}"));
        let file = segment::create().map_err(failed)?;
        let creator = Process::this();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let nonce =
            now.wrapping_shl(20) ^ u64::from(creator.pid).wrapping_shl(8) ^ CREATED.fetch_add(1, Ordering::Relaxed);
        let rendezvous = Self { creator, descriptor: file.as_raw_fd(), nonce };
        lock(&OPEN).insert(nonce, file);
        Ok(rendezvous)
    }

    /// Opens the shared memory for a rank that joins.
    pub(crate) fn open(self) -> Result<File, Failure> {
        let path = format!("/proc/{}/fd/{}", self.creator.pid, self.descriptor);
        let opened = OpenOptions::new().read(true).write(true).open(path);
        opened.ok().filter(|_| self.creator.is_alive()).ok_or_else(|| {
            Failure::new(SystemError, format!("process {}, which created the unique id, is gone", self.creator.pid))
        })
    }

    /// Closes the creator's file once all ranks have opened the memory.
    pub(crate) fn complete(self) {
        lock(&OPEN).remove(&self.nonce);
    }

    fn id(self) -> UniqueId {
        let Self { creator, descriptor, nonce } = self;
        let text = format!("arinar-stand-in {} {} {descriptor} {nonce}", creator.pid, creator.start_time);
        let mut id = UniqueId([0; LENGTH]);
        id.0[..text.len()].copy_from_slice(text.as_bytes());
        id
    }

    pub(crate) fn parse(id: &UniqueId) -> Result<Self, Failure> {
        let parsed = || {
            let text = CStr::from_bytes_until_nul(&id.0).ok()?.to_str().ok()?.strip_prefix("arinar-stand-in ")?;
            let mut words = text.split(' ');
            let creator = Process { pid: words.next()?.parse().ok()?, start_time: words.next()?.parse().ok()? };
            Some(Self { creator, descriptor: words.next()?.parse().ok()?, nonce: words.next()?.parse().ok()? })
        };
        parsed().ok_or_else(|| Failure::new(InvalidArgument, "invalid unique id; was it completely sent to all ranks?"))
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetUniqueId(out: *mut UniqueId) -> NcclResult {
    if out.is_null() {
        return InvalidArgument;
    }
    to_code(Rendezvous::create().map(|rendezvous| {
        // SAFETY: the caller passes a pointer to the 128 bytes of an id, and it is not null.
        unsafe { out.write(rendezvous.id()) };
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_identifies_the_shared_memory() {
        let rendezvous = Rendezvous::create().unwrap();
        assert_eq!(Rendezvous::parse(&rendezvous.id()).unwrap(), rendezvous);
        rendezvous.open().unwrap();
        let gone = Rendezvous { creator: Process { start_time: 1, ..rendezvous.creator }, ..rendezvous };
        assert_eq!(gone.open().unwrap_err().result, SystemError);
        assert!(Rendezvous::parse(&UniqueId([0; LENGTH])).is_err());
        rendezvous.complete();
    }
}
