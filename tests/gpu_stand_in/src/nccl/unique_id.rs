//! The unique id of a communicator: where its shared memory is.
//!
//! The memory is a file without a name, which whoever makes the id holds open. The others open it through /proc while
//! they join. So there is nothing to clean up, whoever is killed and when.

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
        told,
    },
    segment,
};
use crate::lock;

const LENGTH: usize = 128;

/// `ncclUniqueId`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId([u8; LENGTH]);

/// What a unique id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meeting {
    pub maker: Process,
    descriptor: i32,
    /// Different for every id of a machine.
    pub nonce: u64,
}

/// The files of ids whose ranks have not all come.
static OPEN: Mutex<BTreeMap<u64, File>> = Mutex::new(BTreeMap::new());

impl Meeting {
    fn create() -> Result<Self, Failure> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let failed = |error: std::io::Error| Failure::new(SystemError, format!("shared memory: {error}"));
        let file = segment::create().map_err(failed)?;
        let maker = Process::this();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let nonce = now.wrapping_shl(20) ^ u64::from(maker.pid).wrapping_shl(8) ^ MADE.fetch_add(1, Ordering::Relaxed);
        let meeting = Self { maker, descriptor: file.as_raw_fd(), nonce };
        lock(&OPEN).insert(nonce, file);
        Ok(meeting)
    }

    /// The shared memory, for a rank that joins.
    pub fn open(self) -> Result<File, Failure> {
        let path = format!("/proc/{}/fd/{}", self.maker.pid, self.descriptor);
        let opened = OpenOptions::new().read(true).write(true).open(path);
        opened.ok().filter(|_| self.maker.lives()).ok_or_else(|| {
            Failure::new(SystemError, format!("process {}, which made the unique id, is gone", self.maker.pid))
        })
    }

    /// All ranks have it open: who made it need not hold it.
    pub fn complete(self) {
        lock(&OPEN).remove(&self.nonce);
    }

    fn id(self) -> UniqueId {
        let Self { maker, descriptor, nonce } = self;
        let text = format!("arinar-stand-in {} {} {descriptor} {nonce}", maker.pid, maker.started);
        let mut id = UniqueId([0; LENGTH]);
        id.0[..text.len()].copy_from_slice(text.as_bytes());
        id
    }

    pub fn parse(id: &UniqueId) -> Result<Self, Failure> {
        let parsed = || {
            let text = CStr::from_bytes_until_nul(&id.0).ok()?.to_str().ok()?.strip_prefix("arinar-stand-in ")?;
            let mut words = text.split(' ');
            let maker = Process { pid: words.next()?.parse().ok()?, started: words.next()?.parse().ok()? };
            Some(Self { maker, descriptor: words.next()?.parse().ok()?, nonce: words.next()?.parse().ok()? })
        };
        parsed()
            .ok_or_else(|| Failure::new(InvalidArgument, "the unique id is none; was it spread to all ranks whole?"))
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetUniqueId(place: *mut UniqueId) -> NcclResult {
    if place.is_null() {
        return InvalidArgument;
    }
    told(Meeting::create().map(|meeting| {
        // SAFETY: not null, and the caller gives a place for the 128 bytes of an id.
        unsafe { place.write(meeting.id()) };
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_where_the_memory_is() {
        let meeting = Meeting::create().unwrap();
        assert_eq!(Meeting::parse(&meeting.id()).unwrap(), meeting);
        meeting.open().unwrap();
        let gone = Meeting { maker: Process { started: 1, ..meeting.maker }, ..meeting };
        assert_eq!(gone.open().unwrap_err().result, SystemError);
        assert!(Meeting::parse(&UniqueId([0; LENGTH])).is_err());
        meeting.complete();
    }
}
