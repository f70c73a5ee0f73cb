//! Communicators: one rank's membership of a group, what it has to do, and how it is.

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
        tell, told,
    },
    segment::Segment,
};
use crate::{
    completion::Completion,
    cuda::stream::{FAILED, Stream},
    lock,
};

/// How long after the call a communicator that does not block puts a collective on its stream: long enough that a
/// program which goes on without asking is ahead of it.
const LAUNCH_AFTER: Duration = Duration::from_millis(1);
/// How often something that only an abort ends looks for it.
const LOOK_EVERY: Duration = Duration::from_millis(1);
const HANDLE_STEP: usize = 0x10;

/// A collective on its way to a stream.
pub struct Launch {
    pub stream: Stream,
    pub call: Call,
    pub fault: Option<Fault>,
}

pub struct Communicator {
    pub rank: usize,
    pub world: usize,
    pub device: usize,
    /// Calls return when they are done; otherwise they return `InProgress`.
    pub blocking: bool,
    aborted: AtomicBool,
    /// What `ncclCommGetAsyncError` answers.
    state: Mutex<NcclResult>,
    changed: Condvar,
    /// The shared memory, once all ranks have come.
    segment: OnceLock<Segment>,
    /// The number of the last round. Locked while a collective uses the program's memory.
    round: Mutex<u64>,
    /// The newest collective: those of one communicator run one after the other, whatever their streams.
    newest: Mutex<Option<Arc<Completion>>>,
}

impl Communicator {
    pub fn new(rank: usize, world: usize, device: usize, blocking: bool) -> Self {
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
            newest: Mutex::new(None),
        }
    }

    pub fn aborted(&self) -> &AtomicBool {
        &self.aborted
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    pub fn wait_until_aborted(&self) {
        while !self.is_aborted() {
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Ends what was in progress. An error is never taken back.
    pub fn settle(&self, result: Result<(), Failure>) {
        let mut state = lock(&self.state);
        if matches!(*state, InProgress | Success) && !self.is_aborted() {
            *state = match &result {
                Ok(()) => Success,
                Err(failure) => {
                    FAILED.fetch_add(1, Ordering::AcqRel);
                    call_log::note(self.rank, &format!("\"event\":\"error\",\"result\":{}", failure.result as u32));
                    tell(failure);
                    failure.result
                }
            };
        }
        self.changed.notify_all();
    }

    pub fn state(&self) -> NcclResult {
        *lock(&self.state)
    }

    pub fn wait_until_settled(&self) -> NcclResult {
        let mut state = lock(&self.state);
        while *state == InProgress {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state
    }

    /// All ranks have come.
    pub fn set_segment(&self, segment: Segment) {
        let _ = self.segment.set(segment);
    }

    /// # Errors
    /// The communicator has failed, or has not finished the call before.
    pub fn require_ready(&self) -> Result<(), Failure> {
        match self.state() {
            Success => Ok(()),
            InProgress => Err(Failure::new(
                InvalidArgument,
                "a call before the one before it was done: ask ncclCommGetAsyncError until it says ncclSuccess",
            )),
            failed => Err(Failure::new(failed, "a call on a communicator that has failed")),
        }
    }

    /// Something is in progress from now on, unless the communicator has failed. Returns the state.
    fn begin(&self) -> NcclResult {
        let mut state = lock(&self.state);
        if *state == Success {
            *state = InProgress;
        }
        *state
    }

    /// Puts collectives on their streams, now or soon.
    pub fn launch(self: &Arc<Self>, launches: Vec<Launch>) -> NcclResult {
        // The default stream is the calling thread, so that a call there is always done when it returns.
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
            thread::sleep(LAUNCH_AFTER);
            launches.into_iter().for_each(|launch| communicator.put(launch));
            communicator.settle(Ok(()));
        });
        InProgress
    }

    fn put(self: &Arc<Self>, launch: Launch) {
        let done = Arc::new(Completion::default());
        let before = lock(&self.newest).replace(Arc::clone(&done));
        let communicator = Arc::clone(self);
        launch.stream.launch(move || {
            if let Some(before) = before {
                before.wait();
            }
            communicator.run(&launch.call, launch.fault);
            done.complete();
        });
    }

    /// Does a collective, or never ends, as one does that fails.
    fn run(&self, call: &Call, fault: Option<Fault>) {
        let mut round = lock(&self.round);
        let Some(segment) = self.segment.get().filter(|_| !self.is_aborted()) else { return };
        match fault {
            Some(Fault::Error) => self.settle(Err(Failure::new(SystemError, "an error that the test asked for"))),
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
        // SAFETY: whoever called the collective promised its memory until the stream has done it, or an abort returns;
        // and `abort` waits for the lock that is held here.
        let result = unsafe { call.execute(segment, &self.aborted, &mut round) };
        match result {
            // SAFETY: as above.
            Ok(()) if fault == Some(Fault::Garbage) => unsafe { call.garble() },
            Ok(()) | Err(Broken::Aborted) => {}
            Err(broken) => {
                self.settle(Err(failure(&broken)));
                self.wait_until_aborted();
            }
        }
    }

    fn pause(&self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time && !self.is_aborted() {
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Returns when all collectives so far are done: never, if one has failed.
    fn flush(&self) {
        if !matches!(self.wait_until_settled(), Success) {
            eprintln!("NCCL stand-in: a communicator that has failed is waited for; it should be aborted");
        }
        let newest = lock(&self.newest).clone();
        if let Some(newest) = newest {
            newest.wait();
        }
    }

    fn leave(&self, event: &str) {
        if !matches!(self.state(), InProgress | Success) {
            FAILED.fetch_sub(1, Ordering::AcqRel);
        }
        if let Some(segment) = self.segment.get() {
            segment.leave();
        }
        call_log::note(self.rank, &format!("\"event\":\"{event}\""));
    }

    /// Ends everything at once. When it returns nothing uses the program's memory any more.
    fn abort(&self) {
        {
            // So that nothing is settled between this and what `leave` sees.
            let _state = lock(&self.state);
            self.aborted.store(true, Ordering::Release);
        }
        drop(lock(&self.round));
        self.leave("abort");
    }
}

/// What a rank is told when the ranks did not come together.
pub fn failure(broken: &Broken) -> Failure {
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
    made: usize,
    known: BTreeMap<usize, Arc<Communicator>>,
}

static COMMUNICATORS: Mutex<Communicators> = Mutex::new(Communicators { made: 0, known: BTreeMap::new() });

/// Gives a communicator a handle.
pub fn add(communicator: Arc<Communicator>) -> usize {
    let mut all = lock(&COMMUNICATORS);
    all.made += 1;
    let handle = all.made * HANDLE_STEP;
    all.known.insert(handle, communicator);
    handle
}

fn unknown() -> Failure {
    Failure::new(InvalidArgument, "no such communicator; was it destroyed or aborted?")
}

/// # Errors
/// There is none of that handle.
pub fn find(handle: usize) -> Result<Arc<Communicator>, Failure> {
    lock(&COMMUNICATORS).known.get(&handle).cloned().ok_or_else(unknown)
}

/// Takes a communicator's handle away.
///
/// # Errors
/// There is none of that handle.
pub fn remove(handle: usize) -> Result<Arc<Communicator>, Failure> {
    lock(&COMMUNICATORS).known.remove(&handle).ok_or_else(unknown)
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommAbort(handle: usize) -> NcclResult {
    told(remove(handle).map(|communicator| communicator.abort()))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommDestroy(handle: usize) -> NcclResult {
    told(remove(handle).map(|communicator| {
        communicator.flush();
        communicator.leave("destroy");
    }))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommFinalize(handle: usize) -> NcclResult {
    let communicator = match find(handle).and_then(|found| found.require_ready().map(|()| found)) {
        Ok(communicator) => communicator,
        Err(failure) => return told(Err(failure)),
    };
    if communicator.blocking {
        communicator.flush();
        return Success;
    }
    let newest = lock(&communicator.newest).clone();
    let state = communicator.begin();
    if state == InProgress {
        thread::spawn(move || {
            if let Some(newest) = newest {
                newest.wait();
            }
            communicator.settle(Ok(()));
        });
    }
    state
}

/// Tells a fact about a communicator.
///
/// # Safety
/// `place` is null or valid for writing a `T`.
unsafe fn put<T>(handle: usize, place: *mut T, fact: impl FnOnce(&Communicator) -> T) -> NcclResult {
    if place.is_null() {
        return InvalidArgument;
    }
    // SAFETY: not null, so valid for the write (the caller's promise).
    told(find(handle).map(|communicator| unsafe { place.write(fact(&communicator)) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommGetAsyncError(handle: usize, error: *mut NcclResult) -> NcclResult {
    // SAFETY: the caller gives a place for one result, or null.
    unsafe { put(handle, error, Communicator::state) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommCount(handle: usize, count: *mut c_int) -> NcclResult {
    // SAFETY: the caller gives a place for one integer, or null.
    unsafe { put(handle, count, |communicator| communicator.world as c_int) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommUserRank(handle: usize, rank: *mut c_int) -> NcclResult {
    // SAFETY: the caller gives a place for one integer, or null.
    unsafe { put(handle, rank, |communicator| communicator.rank as c_int) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommCuDevice(handle: usize, device: *mut c_int) -> NcclResult {
    // SAFETY: the caller gives a place for one integer, or null.
    unsafe { put(handle, device, |communicator| communicator.device as c_int) }
}
