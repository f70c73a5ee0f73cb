//! Communicators: a rank's membership in a group, its pending work and its state.

use std::{
    collections::BTreeMap,
    ffi::c_int,
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, getpid, kill_process};

use super::{
    call_log,
    collective::Call,
    exchange::Broken,
    faults::Fault,
    result::{
        Failure,
        NcclResult::{self, *},
        record_failure, to_code,
    },
    segment::Segment,
};
use crate::{
    completion::Completion,
    cuda::stream::{FAILED, Stream},
    lock,
};

/// Delay with which a non-blocking communicator puts a collective on its stream, long enough to expose programs that
/// continue without polling.
const LAUNCH_DELAY: Duration = Duration::from_millis(1);
/// Interval at which waits poll for an abort.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
const HANDLE_STEP: usize = 0x10;

/// A collective to be put on a stream.
pub(crate) struct Launch {
    pub(crate) stream: Stream,
    pub(crate) call: Call,
    pub(crate) fault: Option<Fault>,
}

pub(crate) struct Communicator {
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) device: usize,
    /// Whether calls return when they are done. Otherwise they return `InProgress`.
    pub(crate) blocking: bool,
    aborted: AtomicBool,
    /// Result of `ncclCommGetAsyncError`.
    state: Mutex<NcclResult>,
    changed: Condvar,
    /// The shared memory, set once all ranks have joined.
    segment: OnceLock<Segment>,
    /// Number of the last round. It is locked while a collective uses the program's memory.
    round: Mutex<u64>,
    /// The latest collective. Those of one communicator run one after the other, even on different streams.
    latest: Mutex<Option<Arc<Completion>>>,
}

impl Communicator {
    pub(crate) fn new(rank: usize, world: usize, device: usize, blocking: bool) -> Self {
        Self {
            rank,
            world,
            device,
            blocking,
            aborted: AtomicBool::new(false),
            state: Mutex::new(InProgress),
            changed: Condvar::new(),
            segment: OnceLock::new(),
            round: Mutex::new(0),
            latest: Mutex::new(None),
        }
    }

    pub(crate) fn aborted(&self) -> &AtomicBool {
        &self.aborted
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    pub(crate) fn wait_until_aborted(&self) {
        while !self.is_aborted() {
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Ends the call in progress. An earlier error is kept.
    pub(crate) fn settle(&self, result: Result<(), Failure>) {
        let mut state = lock(&self.state);
        if matches!(*state, InProgress | Success) && !self.is_aborted() {
            *state = match &result {
                Ok(()) => Success,
                Err(failure) => {
                    FAILED.fetch_add(1, Ordering::AcqRel);
                    call_log::log(self.rank, &format!("\"event\":\"error\",\"result\":{}", failure.result as u32));
                    record_failure(failure);
                    failure.result
                }
            };
        }
        self.changed.notify_all();
    }

    pub(crate) fn state(&self) -> NcclResult {
        *lock(&self.state)
    }

    pub(crate) fn wait_until_settled(&self) -> NcclResult {
        let mut state = lock(&self.state);
        while *state == InProgress {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state
    }

    /// Sets the shared memory, once all ranks have joined.
    pub(crate) fn set_segment(&self, segment: Segment) {
        let _ = self.segment.set(segment);
    }

    /// Checks that a new call is allowed.
    ///
    /// # Errors
    /// Fails if the communicator has failed or has not finished the previous call.
    pub(crate) fn require_ready(&self) -> Result<(), Failure> {
        match self.state() {
            Success => Ok(()),
            InProgress => Err(Failure::new(
                InvalidArgument,
                "the previous call is still in progress; poll ncclCommGetAsyncError until it returns ncclSuccess",
            )),
            failed => Err(Failure::new(failed, "the communicator has failed")),
        }
    }

    /// Marks a call as in progress, unless the communicator has failed. Returns the state.
    fn begin(&self) -> NcclResult {
        let mut state = lock(&self.state);
        if *state == Success {
            *state = InProgress;
        }
        *state
    }

    /// Puts collectives on their streams, immediately or after a delay.
    pub(crate) fn launch(self: &Arc<Self>, launches: Vec<Launch>) -> NcclResult {
        // The default stream is the calling thread, so a call on it is always done when it returns.
        if self.blocking || launches.iter().any(|launch| matches!(launch.stream, Stream::Default)) {
            launches.into_iter().for_each(|launch| self.put(launch));
            return Success;
        }
        let state = self.begin();
        if state != InProgress {
            return state;
        }
        let communicator = Arc::clone(self);
        thread::spawn(move || {
            thread::sleep(LAUNCH_DELAY);
            launches.into_iter().for_each(|launch| communicator.put(launch));
            communicator.settle(Ok(()));
        });
        InProgress
    }

    fn put(self: &Arc<Self>, launch: Launch) {
        let done = Arc::new(Completion::default());
        let before = lock(&self.latest).replace(Arc::clone(&done));
        let communicator = Arc::clone(self);
        launch.stream.launch(move || {
            if let Some(before) = before {
                before.wait();
            }
            communicator.run(&launch.call, launch.fault);
            done.complete();
        });
    }

    /// Executes a collective. If it fails, this only returns after an abort, as with NCCL.
    fn run(&self, call: &Call, fault: Option<Fault>) {
        let mut round = lock(&self.round);
        let Some(segment) = self.segment.get().filter(|_| !self.is_aborted()) else { return };
        match fault {
            Some(Fault::Error) => self.settle(Err(Failure::new(SystemError, "injected error"))),
            Some(Fault::Hang) => self.wait_until_aborted(),
            Some(Fault::Slow(time)) => self.pause(time),
            Some(Fault::Die) => {
                let _ = kill_process(getpid(), Signal::KILL);
            }
            Some(Fault::Garbage | Fault::Refuse) | None => {}
        }
        if self.is_aborted() {
            return;
        }
        if !matches!(self.state(), Success | InProgress) {
            return self.wait_until_aborted();
        }
        // SAFETY: the caller of the collective guarantees its memory until the stream has finished it or an abort
        // returns, and `abort` waits for the lock that is held here.
        let result = unsafe { call.execute(segment, &self.aborted, &mut round) };
        match result {
            // SAFETY: as above.
            Ok(()) if fault == Some(Fault::Garbage) => unsafe { call.corrupt() },
            Ok(()) | Err(Broken::Aborted) => {}
            Err(broken) => {
                self.settle(Err(failure(&broken)));
                self.wait_until_aborted();
            }
        }
    }

    fn pause(&self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time && !self.is_aborted() {
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until all collectives so far are done. This never returns if one has failed.
    fn flush(&self) {
        if !matches!(self.wait_until_settled(), Success) {
            eprintln!("NCCL stand-in: waiting for a communicator that has failed; it should be aborted");
        }
        let latest = lock(&self.latest).clone();
        if let Some(latest) = latest {
            latest.wait();
        }
    }

    fn leave(&self, event: &str) {
        if !matches!(self.state(), InProgress | Success) {
            FAILED.fetch_sub(1, Ordering::AcqRel);
        }
        if let Some(segment) = self.segment.get() {
            segment.leave();
        }
        call_log::log(self.rank, &format!("\"event\":\"{event}\""));
    }

    /// Aborts all work. When this returns, nothing uses the program's memory any more.
    fn abort(&self) {
        {
            // Hold the state, so that no result is settled before `leave` reads it.
            let _state = lock(&self.state);
            self.aborted.store(true, Ordering::Release);
        }
        drop(lock(&self.round));
        self.leave("abort");
    }
}

/// Returns the failure of a rank whose exchange with the other ranks broke.
pub(crate) fn failure(broken: &Broken) -> Failure {
    match broken {
        Broken::Aborted => Failure::new(InvalidUsage, "the communicator was aborted"),
        Broken::Gone(rank) => Failure::new(RemoteError, format!("rank {rank} is gone")),
        Broken::Differs { rank, here, there } => {
            let [here, there] = [here, there].map(|facts| Call::describe(*facts));
            Failure::new(InvalidUsage, format!("rank {rank} called {there}, and this rank {here}"))
        }
    }
}

struct Communicators {
    created: usize,
    known: BTreeMap<usize, Arc<Communicator>>,
}

static COMMUNICATORS: Mutex<Communicators> = Mutex::new(Communicators { created: 0, known: BTreeMap::new() });

/// Registers a communicator and returns its handle.
pub(crate) fn add(communicator: Arc<Communicator>) -> usize {
    let mut all = lock(&COMMUNICATORS);
    all.created += 1;
    let handle = all.created * HANDLE_STEP;
    all.known.insert(handle, communicator);
    handle
}

fn unknown_handle() -> Failure {
    Failure::new(InvalidArgument, "unknown communicator; was it destroyed or aborted?")
}

/// Returns the communicator of a handle.
///
/// # Errors
/// Fails if the handle is unknown.
pub(crate) fn find(handle: usize) -> Result<Arc<Communicator>, Failure> {
    lock(&COMMUNICATORS).known.get(&handle).cloned().ok_or_else(unknown_handle)
}

/// Unregisters a communicator and returns it.
///
/// # Errors
/// Fails if the handle is unknown.
pub(crate) fn remove(handle: usize) -> Result<Arc<Communicator>, Failure> {
    lock(&COMMUNICATORS).known.remove(&handle).ok_or_else(unknown_handle)
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommAbort(handle: usize) -> NcclResult {
    to_code(remove(handle).map(|communicator| communicator.abort()))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommDestroy(handle: usize) -> NcclResult {
    to_code(remove(handle).map(|communicator| {
        communicator.flush();
        communicator.leave("destroy");
    }))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommFinalize(handle: usize) -> NcclResult {
    let communicator = match find(handle).and_then(|found| found.require_ready().map(|()| found)) {
        Ok(communicator) => communicator,
        Err(failure) => return to_code(Err(failure)),
    };
    if communicator.blocking {
        communicator.flush();
        return Success;
    }
    let latest = lock(&communicator.latest).clone();
    let state = communicator.begin();
    if state == InProgress {
        thread::spawn(move || {
            if let Some(latest) = latest {
                latest.wait();
            }
            communicator.settle(Ok(()));
        });
    }
    state
}

/// Writes a property of a communicator to the caller's memory.
///
/// # Safety
/// `out` must be null or valid for writing a `T`.
unsafe fn put<T>(handle: usize, out: *mut T, property: impl FnOnce(&Communicator) -> T) -> NcclResult {
    if out.is_null() {
        return InvalidArgument;
    }
    // SAFETY: the pointer is not null, so the caller guarantees that it is valid for the write.
    to_code(find(handle).map(|communicator| unsafe { out.write(property(&communicator)) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommGetAsyncError(handle: usize, error: *mut NcclResult) -> NcclResult {
    // SAFETY: the caller passes a pointer to a result, or null.
    unsafe { put(handle, error, Communicator::state) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommCount(handle: usize, count: *mut c_int) -> NcclResult {
    // SAFETY: the caller passes a pointer to an integer, or null.
    unsafe { put(handle, count, |communicator| communicator.world as c_int) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommUserRank(handle: usize, rank: *mut c_int) -> NcclResult {
    // SAFETY: the caller passes a pointer to an integer, or null.
    unsafe { put(handle, rank, |communicator| communicator.rank as c_int) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommCuDevice(handle: usize, device: *mut c_int) -> NcclResult {
    // SAFETY: the caller passes a pointer to an integer, or null.
    unsafe { put(handle, device, |communicator| communicator.device as c_int) }
}
