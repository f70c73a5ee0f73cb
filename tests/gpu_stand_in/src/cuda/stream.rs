//! Streams: queues of work, each with a thread of its own that does it in order.

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

/// How often a wait of the default stream looks whether there is still hope.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Communicators of this process that have failed and were not aborted: what is on their streams does not end.
pub static FAILED: AtomicUsize = AtomicUsize::new(0);
/// What the default stream still has to wait for before it does anything else.
static OWED: Mutex<Vec<Arc<Completion>>> = Mutex::new(Vec::new());

pub type Work = Box<dyn FnOnce() + Send>;

/// `CU_STREAM_NON_BLOCKING`: the default stream does not wait for this one.
const NON_BLOCKING: c_uint = 1;
/// The handles 0, 1 and 2 mean the default stream of the process or the thread; here they are the same.
const LAST_DEFAULT: usize = 2;
/// Handles look like pointers, but nothing is there.
const HANDLE_STEP: usize = 0x1000;

/// A queue and what its thread is doing.
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// The default stream waits for it.
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

    /// The thread: does what comes in until the queue is closed and empty.
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

    /// What waits is still done.
    fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }
}

/// Where work goes.
#[derive(Clone)]
pub enum Stream {
    /// The calling thread, after every stream that it waits for.
    Default,
    /// A stream that somebody made.
    Queued(Arc<Queue>),
}

impl Stream {
    /// The stream of a handle.
    pub fn find(handle: usize) -> Option<Self> {
        if handle <= LAST_DEFAULT {
            return Some(Self::Default);
        }
        lock(&STREAMS).queues.get(&handle).map(|queue| Self::Queued(Arc::clone(queue)))
    }

    /// Work that takes time on a device: a copy, a fill, a collective. It is delayed as the environment asks.
    pub fn launch(&self, work: impl FnOnce() + Send + 'static) {
        match self {
            Self::Default => self.mark(work),
            Self::Queued(queue) => queue.add(Box::new(move || {
                thread::sleep(settings().delay);
                work();
            })),
        }
    }

    /// Work that only orders other work: an event.
    pub fn mark(&self, work: impl FnOnce() + Send + 'static) {
        match self {
            Self::Default => {
                let owed = std::mem::take(&mut *lock(&OWED));
                owed.iter().for_each(|mark| mark.wait());
                for queue in queues().iter().filter(|queue| queue.blocking) {
                    synchronize(queue);
                }
                work();
            }
            Self::Queued(queue) => queue.add(Box::new(work)),
        }
    }

    /// What comes after this on the stream waits for the mark.
    ///
    /// For the default stream that is the thread that works on CPU tensors, so it waits now, as it would not on a GPU.
    /// When a communicator has failed it goes on, to find that out, and the stream waits when it is used next.
    pub fn wait(&self, mark: Arc<Completion>) {
        match self {
            Self::Default => {
                while !mark.wait_for(LOOK_EVERY) {
                    if FAILED.load(Ordering::Acquire) > 0 {
                        return lock(&OWED).push(mark);
                    }
                }
            }
            Self::Queued(queue) => queue.add(Box::new(move || mark.wait())),
        }
    }

    /// Returns when all work before this call is done.
    pub fn synchronize(&self) {
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

/// Returns when all work on all streams before this call is done.
pub fn synchronize_all() {
    queues().iter().for_each(|queue| synchronize(queue));
}

struct Streams {
    made: usize,
    queues: BTreeMap<usize, Arc<Queue>>,
}

static STREAMS: Mutex<Streams> = Mutex::new(Streams { made: 0, queues: BTreeMap::new() });

fn queues() -> Vec<Arc<Queue>> {
    lock(&STREAMS).queues.values().cloned().collect()
}

fn create(flags: c_uint) -> Result<usize, CudaResult> {
    device::current()?;
    let queue = Queue::start(flags & NON_BLOCKING == 0)?;
    let mut streams = lock(&STREAMS);
    streams.made += 1;
    let handle = streams.made * HANDLE_STEP;
    streams.queues.insert(handle, queue);
    Ok(handle)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut usize, flags: c_uint) -> CudaResult {
    match create(flags) {
        // SAFETY: the caller gives a place for one handle, or null.
        Ok(handle) => unsafe { put(stream, handle) },
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreateWithPriority(stream: *mut usize, flags: c_uint, _priority: c_int) -> CudaResult {
    // SAFETY: handed on as it came.
    unsafe { cuStreamCreate(stream, flags) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> CudaResult {
    // SAFETY: the caller gives places for two integers, or null for what it does not want to know.
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

/// The stream of a handle for a call that needs a context, as those with the default stream do.
pub fn usable(handle: usize) -> Result<Stream, CudaResult> {
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

/// What a caller gives along with a function.
struct UserData(*mut c_void);

// SAFETY: the pointer is only handed back to the caller's function, which the caller lets run in the driver's threads.
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
            // SAFETY: the caller promises that its function may be called with its data when the stream gets here.
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
    fn work_is_done_in_order_by_another_thread() {
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
    fn a_closed_queue_still_does_what_waits() {
        let queue = Queue::start(false).unwrap();
        let (gate, reached) = (Arc::new(Completion::default()), Arc::new(Completion::default()));
        let (held, told) = (Arc::clone(&gate), Arc::clone(&reached));
        queue.add(Box::new(move || held.wait()));
        queue.add(Box::new(move || told.complete()));
        queue.close();
        assert!(!queue.is_idle() && !reached.is_complete());
        gate.complete();
        reached.wait();
    }
}
