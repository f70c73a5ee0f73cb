//! A rank that uses the stand-in for libcuda and libnccl through cudarc, as the trainer does, for the stand-in's own
//! tests. Its arguments are `RANK WORLD FOLDER SCENARIO [ARGUMENT]`. Rank 0 writes the unique id to the file `id` in
//! the folder. The test creates a file `abort` there to end waits that hang.

mod ranks;

use std::{
    ffi::c_void,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use cudarc::{
    driver::{
        CudaContext, CudaStream, DevicePtr,
        sys::{self, CUevent_flags},
    },
    nccl::{
        Comm, Id, ReduceOp,
        result::{self, NcclError},
        sys::ncclUniqueId,
    },
};

use ranks::Ranks;

/// Timeout of every wait.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Interval at which waits poll.
const POLL_INTERVAL: Duration = Duration::from_micros(200);
/// Number of elements that exceeds one chunk of shared memory and is not a multiple of its size.
const LONG: usize = 200_003;

struct Job {
    rank: usize,
    world: usize,
    folder: PathBuf,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rank, world, folder, scenario, more @ ..] = &arguments[..] else { bail!("too few arguments") };
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let job = Job { rank: rank.parse()?, world: world.parse()?, folder: folder.into(), context, stream };
    match scenario.as_str() {
        "facts" => job.facts(),
        "numbers" => job.numbers(),
        "safe" => job.safe(),
        "early" => job.early(),
        "events" => job.events(),
        "differ" => job.differ(),
        "group" => job.group(),
        "steps" => job.steps(more[0].parse()?, |ranks| ranks.wait()),
        "trainer-steps" => job.steps(more[0].parse()?, |ranks| ranks.wait_as_the_trainer()),
        other => bail!("unknown scenario {other}"),
    }
}

/// Blocks a stream for [`Job::hold`].
unsafe extern "C" fn wait_at_gate(gate: *mut c_void) {
    // SAFETY: the pointer is the box that `hold` passed on.
    let gate = unsafe { Box::from_raw(gate.cast::<Receiver<()>>()) };
    // Nothing is ever sent: this returns when the sender is dropped.
    let _ = gate.recv();
}

fn nccl<T>(result: Result<T, NcclError>) -> anyhow::Result<T> {
    result.map_err(|error| anyhow::anyhow!("{:?}", error.0))
}

/// Returns a value that differs between ranks and elements, and whose sums over ranks are exact in float32.
fn value(rank: usize, index: usize) -> f32 {
    (index % 1000) as f32 + 1000.0 * (rank + 1) as f32
}

fn values(rank: usize, elements: usize) -> Vec<f32> {
    (0..elements).map(|index| value(rank, index)).collect()
}

impl Job {
    /// Creates the unique id on rank 0 and distributes it to all ranks.
    fn id(&self) -> anyhow::Result<ncclUniqueId> {
        let path = self.folder.join("id");
        if self.rank == 0 {
            let id = nccl(result::get_uniqueid())?;
            let bytes: Vec<u8> = id.internal.iter().map(|byte| *byte as u8).collect();
            std::fs::write(path.with_extension("new"), bytes)?;
            std::fs::rename(path.with_extension("new"), &path)?;
            return Ok(id);
        }
        let start = Instant::now();
        loop {
            if let Ok(bytes) = std::fs::read(&path) {
                let mut internal = [0; 128];
                bytes.iter().zip(&mut internal).for_each(|(from, to)| *to = *from as _);
                return Ok(ncclUniqueId { internal });
            }
            ensure!(start.elapsed() < TIMEOUT, "no id from rank 0");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn facts(&self) -> anyhow::Result<()> {
        let version = nccl(result::get_nccl_version())?;
        let mut bus = [0; 32];
        // SAFETY: the buffer has the given length.
        unsafe { sys::cuDeviceGetPCIBusId(bus.as_mut_ptr(), 32, self.context.cu_device()) }.result()?;
        let bus: String = bus.iter().map_while(|byte| Some(*byte as u8 as char).filter(|char| *char != '\0')).collect();
        let mut driver = 0;
        // SAFETY: `driver` lives until the call returns.
        unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result()?;
        let (count, name, uuid) = (CudaContext::device_count()?, self.context.name()?, self.context.uuid()?);
        let (capability, memory) = (self.context.compute_capability()?, self.context.total_mem()?);
        ensure!(memory == self.context.mem_get_info()?.1 && uuid.bytes[0] == 1);
        println!("NCCL {version}, driver {driver}, {count} of {name:?} {capability:?} at {bus}");
        let missing = CudaContext::new(count as usize);
        println!("one more: {:?}", missing.map(|_| ()));
        Ok(())
    }

    /// Checks every collective, in place and out of place, with several types.
    fn numbers(&self) -> anyhow::Result<()> {
        let ranks = self.ranks(true)?;
        // SAFETY: the handle belongs to this process and is valid until the end of this function.
        let count = nccl(unsafe { result::comm_count(ranks.handle) })?;
        // SAFETY: as above.
        let rank = nccl(unsafe { result::comm_user_rank(ranks.handle) })?;
        ensure!((count, rank) == (self.world as i32, self.rank as i32));
        for elements in [0, 1, 1000, LONG] {
            ranks.check_sums(elements)?;
            ranks.check_broadcasts(elements)?;
            ranks.check_parts(elements)?;
        }
        ranks.check_types()?;
        // SAFETY: the handle belongs to this process and is not used any more.
        nccl(unsafe { result::comm_destroy(ranks.handle) })?;
        println!("all right");
        Ok(())
    }

    /// Checks collectives through cudarc's safe interface, which allocates, copies and waits by itself.
    fn safe(&self) -> anyhow::Result<()> {
        let comm = nccl(Comm::from_rank(self.stream.clone(), self.rank, self.world, Id::uninit(self.id()?.internal)))?;
        let mine = self.stream.clone_htod(&values(self.rank, LONG))?;
        let mut sum = self.stream.alloc_zeros::<f32>(LONG)?;
        nccl(comm.all_reduce(&mine, &mut sum, &ReduceOp::Sum))?;
        let sum = self.stream.clone_dtoh(&sum)?;
        ensure!(sum == self.sums(LONG));
        let mut buffer = self.stream.clone_htod(&values(self.rank, LONG))?;
        nccl(comm.broadcast_in_place(&mut buffer, self.world as i32 - 1))?;
        ensure!(self.stream.clone_dtoh(&buffer)? == values(self.world - 1, LONG));
        println!("all right");
        Ok(())
    }

    /// Blocks all later work on the stream until the returned sender is dropped.
    fn hold(&self, stream: &CudaStream) -> anyhow::Result<Sender<()>> {
        let (sender, gate) = mpsc::channel::<()>();
        let gate = Box::into_raw(Box::new(gate)).cast();
        // SAFETY: the function takes the box back exactly once.
        unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(wait_at_gate), gate) }.result()?;
        Ok(sender)
    }

    /// Checks that data read before the event is still the old data.
    fn early(&self) -> anyhow::Result<()> {
        let ranks = self.ranks(true)?;
        let mut data = values(self.rank, LONG);
        let held = self.hold(&self.stream)?;
        ranks.all_reduce(&mut data)?;
        let event = self.stream.record_event(None)?;
        ensure!(!event.is_complete(), "the event is complete too early");
        // SAFETY: the element exists, and a concurrent writer writes a whole float.
        ensure!(unsafe { (&raw const data[0]).read_volatile() } == value(self.rank, 0), "the sum came too early");
        drop(held);
        // This thread is the default stream, so waiting blocks.
        self.context.default_stream().wait(&event)?;
        ensure!(event.is_complete() && data == self.sums(LONG), "no sum after the wait");
        println!("all right");
        Ok(())
    }

    /// Checks that streams wait for each other only through events, and that page-locked memory is copied in the
    /// background.
    fn events(&self) -> anyhow::Result<()> {
        let other = self.context.new_stream()?;
        let from = self.stream.clone_htod(&values(0, LONG))?;
        // SAFETY: the stand-in initialises the memory that it allocates.
        let (mut first, mut second) =
            unsafe { (self.context.alloc_pinned::<f32>(LONG)?, self.context.alloc_pinned::<f32>(LONG)?) };
        ensure!(first.as_slice()?.iter().all(|element| element.is_nan()), "new memory is not filled with NaN");
        let (first, second) = (first.as_mut_ptr()?, second.as_mut_ptr()?);
        let bytes = LONG * size_of::<f32>();
        let (source, _record) = from.device_ptr(&self.stream);
        let held = self.hold(&self.stream)?;
        // SAFETY: all three have `bytes` bytes and live until the wait for the last event.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(first.cast(), source, bytes, self.stream.cu_stream()).result()?;
            let event = self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            let last = self.context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            ensure!(last.is_complete(), "an event that was never recorded is incomplete");
            other.wait(&event)?;
            sys::cuMemcpyDtoHAsync_v2(second.cast(), first as u64, bytes, other.cu_stream()).result()?;
            last.record(&other)?;
            ensure!(!event.is_complete() && !last.is_complete() && (*second).is_nan(), "the copies did not wait");
            drop(held);
            last.synchronize()?;
            ensure!(event.is_complete(), "the second stream did not wait");
            ensure!(std::slice::from_raw_parts(second, LONG) == values(0, LONG), "the wrong data was copied");
            println!("{} ms between the copies", event.elapsed_ms(&last)?);
        }
        Ok(())
    }

    /// Makes a mismatched call: the last rank sums fewer elements than the others.
    fn differ(&self) -> anyhow::Result<()> {
        let ranks = self.ranks(true)?;
        let mut data = values(self.rank, 100 - (self.rank + 1) / self.world);
        ranks.all_reduce(&mut data)?;
        ranks.wait()?;
        Ok(())
    }

    /// Checks that grouped calls start at the end of the group.
    fn group(&self) -> anyhow::Result<()> {
        let ranks = self.ranks(true)?;
        let mut parts = [values(self.rank, LONG), values(self.rank, 1000)];
        nccl(result::group_start())?;
        for part in &mut parts {
            ranks.all_reduce(part)?;
        }
        self.stream.synchronize()?;
        ensure!(parts[0] == values(self.rank, LONG), "a grouped call started before the end of the group");
        nccl(result::group_end())?;
        self.stream.synchronize()?;
        ensure!(parts[0] == self.sums(LONG) && parts[1] == self.sums(1000));
        println!("all right");
        Ok(())
    }

    /// Runs all-reduces on a non-blocking communicator, polls for errors while waiting, and aborts on the first error.
    fn steps(&self, steps: usize, wait: impl Fn(&Ranks) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let ranks = match self.ranks(false) {
            Ok(ranks) => ranks,
            Err(error) => {
                println!("init: {error}");
                return Ok(());
            }
        };
        let mut data = vec![0.0; LONG];
        for step in 1..=steps {
            data.copy_from_slice(&values(self.rank, LONG));
            if let Err(error) = ranks.all_reduce(&mut data).and_then(|()| wait(&ranks)) {
                println!("step {step}: {error}");
                // SAFETY: the handle belongs to this process and is not used any more.
                nccl(unsafe { result::comm_abort(ranks.handle) })?;
                // The abort releases the stream.
                self.stream.synchronize()?;
                println!("aborted");
                return Ok(());
            }
            if data != self.sums(LONG) {
                println!("step {step}: wrong");
            }
            println!("step {step}");
        }
        // SAFETY: the handle belongs to this process and is not used any more.
        nccl(unsafe { result::comm_destroy(ranks.handle) })?;
        Ok(())
    }

    /// Returns the expected sums over all ranks.
    fn sums(&self, elements: usize) -> Vec<f32> {
        let sum = |index| (0..self.world).map(|rank| value(rank, index)).sum();
        (0..elements).map(sum).collect()
    }
}
