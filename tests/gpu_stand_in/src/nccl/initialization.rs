//! Initialization of communicators: all ranks join the shared memory that the unique id identifies.

use std::{ffi::c_int, sync::Arc, thread};

use super::{
    call_log,
    communicator::{self, Communicator, failure},
    exchange::wait_for_all,
    faults::{Fault, Place},
    result::{
        Failure,
        NcclResult::{self, *},
        to_code,
    },
    segment::{MAX_RANKS, Segment},
    unique_id::{Rendezvous, UniqueId},
};
use crate::{cuda::device, environment::settings};

/// Version 2.29.99, which is new enough for every function and which NVIDIA has not released.
const VERSION: c_int = 22999;
/// Value of `magic` in `NCCL_CONFIG_INITIALIZER`.
const CONFIG_MAGIC: u32 = 0xcafe_beef;
/// Value of a setting that is left at its default.
const UNDEFINED: c_int = c_int::MIN;

/// The first fields of `ncclConfig_t`. The others only affect speed.
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
    // SAFETY: the caller passes a pointer to an integer, and it is not null.
    unsafe { version.write(VERSION) };
    Success
}

/// Joins the other ranks.
fn join(communicator: &Communicator, rendezvous: Rendezvous) -> Result<(), Failure> {
    let (rank, world) = (communicator.rank, communicator.world);
    let faults = settings().faults.as_ref().map_err(|text| Failure::new(InvalidUsage, text.as_str()))?;
    match faults.at(rank, Place::Init) {
        Some(Fault::Error) => return Err(Failure::new(SystemError, "injected error")),
        Some(_) => communicator.wait_until_aborted(),
        None => {}
    }
    let segment = Segment::join(&rendezvous.open()?, rank, world)?;
    let joined = |other| segment.has_joined(other);
    // The state of a rank that has not joined is unknown. But no rank can join if the creator of the id is gone, and
    // waiting is useless if a rank that joined is gone.
    let hopeless = |_| !rendezvous.creator.is_alive() || (0..world).any(|other| segment.is_gone(other));
    let result = wait_for_all(world, communicator.aborted(), joined, hopeless).map_err(|broken| failure(&broken));
    if result.is_err() {
        segment.leave();
        return result;
    }
    rendezvous.complete();
    communicator.set_segment(segment);
    call_log::log(rank, &format!("\"event\":\"init\",\"world\":{world}"));
    Ok(())
}

/// Validates the arguments and starts joining the other ranks.
fn begin(id: &UniqueId, world: c_int, rank: c_int, blocking: bool) -> Result<Arc<Communicator>, Failure> {
    let rendezvous = Rendezvous::parse(id)?;
    let (Ok(rank), Ok(world)) = (usize::try_from(rank), usize::try_from(world)) else {
        return Err(Failure::new(InvalidArgument, format!("rank {rank} of {world} ranks")));
    };
    if rank >= world || world > MAX_RANKS {
        return Err(Failure::new(
            InvalidArgument,
            format!("rank {rank} of {world} ranks; at most {MAX_RANKS} are supported"),
        ));
    }
    // NCCL uses the first device if none is current.
    let device = device::current().unwrap_or(0);
    let communicator = Arc::new(Communicator::new(rank, world, device, blocking));
    let joining = Arc::clone(&communicator);
    thread::spawn(move || joining.settle(join(&joining, rendezvous)));
    Ok(communicator)
}

/// Creates a communicator.
///
/// # Safety
/// `out` must be null or valid for writing a handle.
unsafe fn initialize(out: *mut usize, world: c_int, id: &UniqueId, rank: c_int, blocking: bool) -> NcclResult {
    if out.is_null() {
        return InvalidArgument;
    }
    let communicator = match begin(id, world, rank, blocking) {
        Ok(communicator) => communicator,
        Err(failure) => return to_code(Err(failure)),
    };
    let handle = communicator::add(Arc::clone(&communicator));
    // SAFETY: the pointer is not null, so the caller guarantees that it is valid for the write.
    unsafe { out.write(handle) };
    if !blocking {
        return InProgress;
    }
    let result = communicator.wait_until_settled();
    if result != Success {
        let _ = communicator::remove(handle);
        // SAFETY: as above.
        unsafe { out.write(0) };
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommInitRank(out: *mut usize, world: c_int, id: UniqueId, rank: c_int) -> NcclResult {
    // SAFETY: the arguments are passed on unchanged.
    unsafe { initialize(out, world, &id, rank, true) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommInitRankConfig(
    out: *mut usize,
    world: c_int,
    id: UniqueId,
    rank: c_int,
    config: *const Config,
) -> NcclResult {
    let mut blocking = true;
    if !config.is_null() {
        // SAFETY: the caller passes a configuration, which begins with these fields in all versions.
        let config = unsafe { config.read() };
        if config.magic != CONFIG_MAGIC || config.size < size_of::<Config>() {
            return to_code(Err(Failure::new(InvalidArgument, "the configuration was not initialised")));
        }
        blocking = match config.blocking {
            0 => false,
            1 | UNDEFINED => true,
            other => {
                return to_code(Err(Failure::new(InvalidArgument, format!("blocking is {other} instead of 0 or 1"))));
            }
        };
    }
    // SAFETY: the arguments are passed on unchanged.
    unsafe { initialize(out, world, &id, rank, blocking) }
}
