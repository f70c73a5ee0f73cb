//! Making communicators: all ranks meet in the shared memory that the unique id names.

use std::{ffi::c_int, sync::Arc, thread};

use super::{
    call_log,
    communicator::{self, Communicator, failure},
    exchange::wait_for_all,
    faults::{Fault, Place},
    result::{
        Failure,
        NcclResult::{self, *},
        told,
    },
    segment::{MAX_RANKS, Segment},
    unique_id::{Meeting, UniqueId},
};
use crate::{cuda::device, environment::settings};

/// 2.29.99: new enough for every function, and no version that NVIDIA made.
const VERSION: c_int = 22999;
/// What `NCCL_CONFIG_INITIALIZER` puts into a configuration, and its word for "as usual".
const CONFIG_MAGIC: u32 = 0xcafe_beef;
const UNDEFINED: c_int = c_int::MIN;

/// The start of `ncclConfig_t`; what follows is about speed.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> NcclResult {
    if version.is_null() {
        return InvalidArgument;
    }
    // SAFETY: not null, and the caller gives a place for one integer.
    unsafe { version.write(VERSION) };
    Success
}

/// Meets the other ranks.
fn join(communicator: &Communicator, meeting: Meeting) -> Result<(), Failure> {
    let (rank, world) = (communicator.rank, communicator.world);
    let faults = settings().faults.as_ref().map_err(|text| Failure::new(InvalidUsage, text.as_str()))?;
    match faults.at(rank, Place::Init) {
        Some(Fault::Error) => return Err(Failure::new(SystemError, "an error that the test asked for")),
        Some(_) => communicator.wait_until_aborted(),
        None => {}
    }
    let segment = Segment::join(&meeting.open()?, rank, world)?;
    let come = |other| segment.has_come(other);
    // Of a rank that has not come nothing is known. But nobody can come when whoever made the id is gone, and it is no
    // use to wait when one that came is gone again.
    let hopeless = |_| !meeting.maker.lives() || (0..world).any(|other| segment.is_gone(other));
    let met = wait_for_all(world, communicator.aborted(), come, hopeless).map_err(|broken| failure(&broken));
    if met.is_err() {
        segment.leave();
        return met;
    }
    meeting.complete();
    communicator.set_segment(segment);
    call_log::note(rank, &format!("\"event\":\"init\",\"world\":{world}"));
    Ok(())
}

/// Checks what can be checked at once, and starts to meet the others.
fn begin(id: &UniqueId, world: c_int, rank: c_int, blocking: bool) -> Result<Arc<Communicator>, Failure> {
    let meeting = Meeting::parse(id)?;
    let (Ok(rank), Ok(world)) = (usize::try_from(rank), usize::try_from(world)) else {
        return Err(Failure::new(InvalidArgument, format!("rank {rank} of {world} ranks")));
    };
    if rank >= world || world > MAX_RANKS {
        return Err(Failure::new(InvalidArgument, format!("rank {rank} of {world} ranks; {MAX_RANKS} are possible")));
    }
    // NCCL makes the first device current if none is.
    let device = device::current().unwrap_or(0);
    let communicator = Arc::new(Communicator::new(rank, world, device, blocking));
    let joining = Arc::clone(&communicator);
    thread::spawn(move || joining.settle(join(&joining, meeting)));
    Ok(communicator)
}

/// # Safety
/// `place` is null or valid for writing a handle.
unsafe fn initialize(place: *mut usize, world: c_int, id: &UniqueId, rank: c_int, blocking: bool) -> NcclResult {
    if place.is_null() {
        return InvalidArgument;
    }
    let communicator = match begin(id, world, rank, blocking) {
        Ok(communicator) => communicator,
        Err(failure) => return told(Err(failure)),
    };
    let handle = communicator::add(Arc::clone(&communicator));
    // SAFETY: not null, so valid for the write (the caller's promise).
    unsafe { place.write(handle) };
    if !blocking {
        return InProgress;
    }
    let result = communicator.wait_until_settled();
    if result != Success {
        let _ = communicator::remove(handle);
        // SAFETY: as above.
        unsafe { place.write(0) };
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommInitRank(place: *mut usize, world: c_int, id: UniqueId, rank: c_int) -> NcclResult {
    // SAFETY: handed on as it came.
    unsafe { initialize(place, world, &id, rank, true) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommInitRankConfig(
    place: *mut usize,
    world: c_int,
    id: UniqueId,
    rank: c_int,
    config: *const Config,
) -> NcclResult {
    let mut blocking = true;
    if !config.is_null() {
        // SAFETY: the caller gives a configuration, whose fields of all versions begin with these.
        let config = unsafe { config.read() };
        if config.magic != CONFIG_MAGIC || config.size < size_of::<Config>() {
            return told(Err(Failure::new(InvalidArgument, "the configuration was not initialised")));
        }
        blocking = match config.blocking {
            0 => false,
            1 | UNDEFINED => true,
            other => return told(Err(Failure::new(InvalidArgument, format!("blocking is {other}, neither 0 nor 1")))),
        };
    }
    // SAFETY: handed on as it came.
    unsafe { initialize(place, world, &id, rank, blocking) }
}
