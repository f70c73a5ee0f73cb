//! Events: marks in a stream that other streams and threads wait for.

use std::{
    collections::BTreeMap,
    ffi::c_uint,
    sync::{Arc, Mutex},
};

use super::{
    code, device, put,
    result::CudaResult::{self, *},
    stream::usable,
};
use crate::{completion::Completion, lock, nccl::call_log::log_event};

/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: c_uint = 2;
const HANDLE_STEP: usize = 0x10;

#[derive(Clone)]
struct Event {
    timed: bool,
    /// The latest mark, if any. A wait refers to the mark that was the latest when it was called.
    mark: Option<Arc<Completion>>,
}

struct Events {
    created: usize,
    known: BTreeMap<usize, Event>,
}

static EVENTS: Mutex<Events> = Mutex::new(Events { created: 0, known: BTreeMap::new() });

fn find(handle: usize) -> Result<Event, CudaResult> {
    lock(&EVENTS).known.get(&handle).cloned().ok_or(InvalidHandle)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut usize, flags: c_uint) -> CudaResult {
    if let Err(error) = device::current() {
        return error;
    }
    let mut events = lock(&EVENTS);
    events.created += 1;
    let handle = events.created * HANDLE_STEP;
    events.known.insert(handle, Event { timed: flags & DISABLE_TIMING == 0, mark: None });
    // SAFETY: the caller passes a pointer to a handle, or null.
    unsafe { put(event, handle) }
}

/// Destroys an event. Streams still complete its recorded marks.
#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(handle: usize) -> CudaResult {
    if lock(&EVENTS).known.remove(&handle).is_some() { Success } else { InvalidHandle }
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(handle: usize, number: usize) -> CudaResult {
    code(usable(number).and_then(|stream| {
        let mark = Arc::new(Completion::default());
        lock(&EVENTS).known.get_mut(&handle).ok_or(InvalidHandle)?.mark = Some(Arc::clone(&mark));
        log_event("record", handle, number);
        stream.mark(move || mark.complete());
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(handle: usize) -> CudaResult {
    match find(handle) {
        Ok(event) if event.mark.as_ref().is_none_or(|mark| mark.is_complete()) => Success,
        Ok(_) => NotReady,
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(handle: usize) -> CudaResult {
    code(find(handle).map(|event| {
        if let Some(mark) = event.mark {
            mark.wait();
        }
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(number: usize, handle: usize, _flags: c_uint) -> CudaResult {
    code(usable(number).and_then(|stream| {
        if let Some(mark) = find(handle)?.mark {
            log_event("wait", handle, number);
            stream.wait(mark);
        }
        Ok(())
    }))
}

fn elapsed(start: usize, end: usize) -> Result<f32, CudaResult> {
    let (start, end) = (find(start)?, find(end)?);
    let (Some(first), Some(last)) = (start.mark, end.mark) else { return Err(InvalidHandle) };
    if !start.timed || !end.timed {
        return Err(InvalidHandle);
    }
    let (Some(first), Some(last)) = (first.at(), last.at()) else { return Err(NotReady) };
    Ok(last.duration_since(first).as_secs_f32() * 1e3)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: usize, end: usize) -> CudaResult {
    match elapsed(start, end) {
        // SAFETY: the caller passes a pointer to a float, or null.
        Ok(time) => unsafe { put(milliseconds, time) },
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: usize, end: usize) -> CudaResult {
    // SAFETY: the arguments are passed on unchanged.
    unsafe { cuEventElapsedTime(milliseconds, start, end) }
}
