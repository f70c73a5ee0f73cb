//! Streams: queues of work, each with a thread that executes it in order.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::{c_int, c_uint, c_void},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    code, device, put,
    result::CudaResult::{self, *},
};
use crate::{completion::Completion, environment::settings, lock};

/// Interval at which a wait of the default stream checks for a failed communicator.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Number of communicators of this process that have failed and were not aborted. Work on their streams does not end.
pub(crate) static FAILED: AtomicUsize = AtomicUsize::new(0);
/// Events that the default stream must wait for before it does anything else.
static DEFERRED_WAITS: Mutex<Vec<Arc<Completion>>> = Mutex::new(Vec::new());

pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// `CU_STREAM_NON_BLOCKING`: the default stream does not wait for this one.
const NON_BLOCKING: c_uint = 1;
/// Largest handle of a default stream: 0, 1 and 2 are those of the process or the thread, which are the same here.
const LAST_DEFAULT: usize = 2;
/// Distance between handles, which look like pointers but do not point to memory.
const HANDLE_STEP: usize = 0x1000;

/// A queue of work for a thread.
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether the default stream waits for this queue.
    blocking: bool,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Work>,
    busy: bool,
    closed: bool,
}

impl Queue {
    fn start(blocking: bool) -> Result<Arc<Self>, CudaResult> {
        let queue = Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), blocking });
        let worker = Arc::clone(&queue);
        thread::Builder::new().name("stand-in stream".into()).spawn(move || worker.work()).map_err(|_| OutOfMemory)?;
        Ok(queue)
    }

    /// Executes work on the queue's thread until the queue is closed and empty.
    fn work(&self) {
        let mut state = lock(&self.state);
        loop {
            if let Some(work) = state.waiting.pop_front() {
                state.busy = true;
                drop(state);
                work();
                state = lock(&self.state);
                state.busy = false;
            } else if state.closed {
                return;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn add(&self, work: Work) {
        lock(&self.state).waiting.push_back(work);
        self.changed.notify_all();
    }

    fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        state.waiting.is_empty() && !state.busy
    }

    /// Closes the queue. Pending work is still executed.
    fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }
}

/// A stream on which work is executed.
#[derive(Clone)]
pub(crate) enum Stream {
    /// The default stream: work runs in the calling thread, after all streams that it waits for.
    Default,
    /// A stream created by the program.
    Queued(Arc<Queue>),
}

impl Stream {
    /// Returns the stream of a handle.
    pub(crate) fn find(handle: usize) -> Option<Self> {
        if handle <= LAST_DEFAULT {
            return Some(Self::Default);
        }
        lock(&STREAMS).queues.get(&handle).map(|queue| Self::Queued(Arc::clone(queue)))
    }

    /// Adds work that takes time on a device: a copy, a fill or a collective. It is delayed as configured.
    pub(crate) fn launch(&self, work: impl FnOnce() + Send + 'static) {
        match self {
            Self::Default => self.mark(work),
            Self::Queued(queue) => queue.add(Box::new(move || {
                thread::sleep(settings().delay);
                work();
            })),
        }
    }

    /// Adds work that only orders other work: an event.
    pub(crate) fn mark(&self, work: impl FnOnce() + Send + 'static) {
        match self {
            Self::Default => {
                let deferred = std::mem::take(&mut *lock(&DEFERRED_WAITS));
                deferred.iter().for_each(|mark| mark.wait());
                for queue in queues().iter().filter(|queue| queue.blocking) {
                    synchronize(queue);
                }
                work();
            }
            Self::Queued(queue) => queue.add(Box::new(work)),
        }
    }

    /// Makes all later work on the stream wait for the mark.
    ///
    /// The default stream is the thread that works on CPU tensors, so it waits immediately, unlike on a GPU. If a
    /// communicator has failed, the wait is deferred until the next use of the stream, so that the thread can detect
    /// the failure.
    pub(crate) fn wait(&self, mark: Arc<Completion>) {
        match self {
            Self::Default => {
                while !mark.wait_for(POLL_INTERVAL) {
                    if FAILED.load(Ordering::Acquire) > 0 {
                        return lock(&DEFERRED_WAITS).push(mark);
                    }
                }
            }
            Self::Queued(queue) => queue.add(Box::new(move || mark.wait())),
        }
    }

    /// Waits until all work added before this call is done.
    pub(crate) fn synchronize(&self) {
        match self {
            Self::Default => self.mark(|| {}),
            Self::Queued(queue) => synchronize(queue),
        }
    }
}

fn synchronize(queue: &Queue) {
    let reached = Arc::new(Completion::default());
    let worker = Arc::clone(&reached);
    queue.add(Box::new(move || worker.complete()));
    reached.wait();
}

/// Waits until all work added to all streams before this call is done.
pub(crate) fn synchronize_all() {
    queues().iter().for_each(|queue| synchronize(queue));
}

struct Streams {
    created: usize,
    queues: BTreeMap<usize, Arc<Queue>>,
}

static STREAMS: Mutex<Streams> = Mutex::new(Streams { created: 0, queues: BTreeMap::new() });

fn queues() -> Vec<Arc<Queue>> {
    lock(&STREAMS).queues.values().cloned().collect()
}

fn create(flags: c_uint) -> Result<usize, CudaResult> {
    device::current()?;
    let queue = Queue::start(flags & NON_BLOCKING == 0)?;
    let mut streams = lock(&STREAMS);
    streams.created += 1;
    let handle = streams.created * HANDLE_STEP;
    streams.queues.insert(handle, queue);
    Ok(handle)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut usize, flags: c_uint) -> CudaResult {
    match create(flags) {
        // SAFETY: the caller passes a pointer to a handle, or null.
        Ok(handle) => unsafe { put(stream, handle) },
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreateWithPriority(stream: *mut usize, flags: c_uint, _priority: c_int) -> CudaResult {
    // SAFETY: the arguments are passed on unchanged.
    unsafe { cuStreamCreate(stream, flags) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> CudaResult {
    // SAFETY: the caller passes pointers to two integers, or null for those that it does not need.
    unsafe {
        put(least, 0);
        put(greatest, 0);
    }
    Success
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(handle: usize) -> CudaResult {
    match lock(&STREAMS).queues.remove(&handle) {
        Some(queue) => {
            queue.close();
            Success
        }
        None => InvalidHandle,
    }
}

/// Returns the stream of a handle. The default stream needs a current context.
pub(crate) fn usable(handle: usize) -> Result<Stream, CudaResult> {
    if handle <= LAST_DEFAULT {
        device::current()?;
    }
    Stream::find(handle).ok_or(InvalidHandle)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(handle: usize) -> CudaResult {
    code(usable(handle).map(|stream| stream.synchronize()))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(handle: usize) -> CudaResult {
    let idle = |stream| match stream {
        Stream::Default => queues().iter().all(|queue| !queue.blocking || queue.is_idle()),
        Stream::Queued(queue) => queue.is_idle(),
    };
    match usable(handle).map(idle) {
        Ok(true) => Success,
        Ok(false) => NotReady,
        Err(error) => error,
    }
}

/// The argument of a caller's function.
struct UserData(*mut c_void);

// SAFETY: the pointer is only passed to the caller's function, which the caller allows to run in the driver's threads.
unsafe impl Send for UserData {}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchHostFunc(
    handle: usize,
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    data: *mut c_void,
) -> CudaResult {
    let Some(function) = function else { return InvalidValue };
    let data = UserData(data);
    code(usable(handle).map(|stream| {
        stream.launch(move || {
            let data = data;
            // SAFETY: the caller guarantees that its function may be called with its data at this point of the stream.
            unsafe { function(data.0) };
        });
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn work_is_executed_in_order_by_another_thread() {
        let stream = Stream::Queued(Queue::start(false).unwrap());
        let (sender, done) = mpsc::channel();
        for number in 0..100 {
            let sender = sender.clone();
            stream.launch(move || sender.send((number, thread::current().id())).unwrap());
        }
        stream.synchronize();
        let done: Vec<_> = done.try_iter().collect();
        assert!(done.iter().map(|(number, _)| *number).eq(0..100));
        assert!(done.iter().all(|(_, worker)| *worker != thread::current().id()));
    }

    #[test]
    fn a_closed_queue_still_executes_pending_work() {
        let queue = Queue::start(false).unwrap();
        let (gate, reached) = (Arc::new(Completion::default()), Arc::new(Completion::default()));
        let (worker_gate, worker_reached) = (Arc::clone(&gate), Arc::clone(&reached));
        queue.add(Box::new(move || worker_gate.wait()));
        queue.add(Box::new(move || worker_reached.complete()));
        queue.close();
        assert!(!queue.is_idle() && !reached.is_complete());
        gate.complete();
        reached.wait();
    }
}
