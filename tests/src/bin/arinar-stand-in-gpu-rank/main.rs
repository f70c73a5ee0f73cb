//! One rank of a job that uses the stand-in for libcuda and libnccl through cudarc, as the trainer does, for the
//! stand-in's own tests: `RANK WORLD FOLDER SCENARIO [ARGUMENT]`. The ranks find each other through the file `id` in
//! the folder; with a file `abort` there the test ends what hangs.

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

/// Nobody waits for a test longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often an event is looked at.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// Longer than one piece of shared memory, and no multiple of anything.
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
        other => bail!("no scenario {other}"),
    }
}

/// What [`Job::hold`] puts on a stream.
unsafe extern "C" fn wait_at_gate(gate: *mut c_void) {
    // SAFETY: it is the box that `hold` gave away.
    let gate = unsafe { Box::from_raw(gate.cast::<Receiver<()>>()) };
    // Nothing is ever sent.
    let _ = gate.recv();
}

fn nccl<T>(result: Result<T, NcclError>) -> anyhow::Result<T> {
    result.map_err(|error| anyhow::anyhow!("{:?}", error.0))
}

/// A value that differs between ranks and elements, and whose sums over ranks are exact in float32.
fn value(rank: usize, index: usize) -> f32 {
    (index % 1000) as f32 + 1000.0 * (rank + 1) as f32
}

fn values(rank: usize, elements: usize) -> Vec<f32> {
    (0..elements).map(|index| value(rank, index)).collect()
}

impl Job {
    /// Rank 0 makes an id, and all learn it.
    fn id(&self) -> anyhow::Result<ncclUniqueId> {
        let place = self.folder.join("id");
        if self.rank == 0 {
            let id = nccl(result::get_uniqueid())?;
            let bytes: Vec<u8> = id.internal.iter().map(|byte| *byte as u8).collect();
            std::fs::write(place.with_extension("new"), bytes)?;
            std::fs::rename(place.with_extension("new"), &place)?;
            return Ok(id);
        }
        let began = Instant::now();
        loop {
            if let Ok(bytes) = std::fs::read(&place) {
                let mut internal = [0; 128];
                bytes.iter().zip(&mut internal).for_each(|(from, to)| *to = *from as _);
                return Ok(ncclUniqueId { internal });
            }
            ensure!(began.elapsed() < PATIENCE, "no id from rank 0");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn facts(&self) -> anyhow::Result<()> {
        let version = nccl(result::get_nccl_version())?;
        let mut bus = [0; 32];
        // SAFETY: the buffer is as long as it is said to be.
        unsafe { sys::cuDeviceGetPCIBusId(bus.as_mut_ptr(), 32, self.context.cu_device()) }.result()?;
        let bus: String = bus.iter().map_while(|byte| Some(*byte as u8 as char).filter(|char| *char != '\0')).collect();
        let mut driver = 0;
        // SAFETY: the place lives until the call returns.
        unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result()?;
        let (count, name, uuid) = (CudaContext::device_count()?, self.context.name()?, self.context.uuid()?);
        let (capability, memory) = (self.context.compute_capability()?, self.context.total_mem()?);
        ensure!(memory == self.context.mem_get_info()?.1 && uuid.bytes[0] == 1);
        println!("NCCL {version}, driver {driver}, {count} of {name:?} {capability:?} at {bus}");
        let missing = CudaContext::new(count as usize);
        println!("one more: {:?}", missing.map(|_| ()));
        Ok(())
    }

    /// Every collective, with in-place and out-of-place memory and several types.
    fn numbers(&self) -> anyhow::Result<()> {
        let ranks = self.ranks(true)?;
        // SAFETY: the handle is of this process, and lives until the end of this function.
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
        // SAFETY: the handle is of this process, and nobody uses it any more.
        nccl(unsafe { result::comm_destroy(ranks.handle) })?;
        println!("all right");
        Ok(())
    }

    /// The same through cudarc's safe interface, which allocates, copies and waits by itself.
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

    /// Nothing that is put on the stream after this is done until the sender is dropped.
    fn hold(&self, stream: &CudaStream) -> anyhow::Result<Sender<()>> {
        let (sender, gate) = mpsc::channel::<()>();
        let gate = Box::into_raw(Box::new(gate)).cast();
        // SAFETY: the function takes the box back, once.
        unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(wait_at_gate), gate) }.result()?;
        Ok(sender)
    }

    /// What is read before the event is old.
    fn early(&self) -> anyhow::Result<()> {
        let ranks = self.ranks(true)?;
        let mut data = values(self.rank, LONG);
        let held = self.hold(&self.stream)?;
        ranks.all_reduce(&mut data)?;
        let event = self.stream.record_event(None)?;
        ensure!(!event.is_complete(), "it is done already");
        // SAFETY: the element is there, and whoever writes it meanwhile writes a whole float.
        ensure!(unsafe { (&raw const data[0]).read_volatile() } == value(self.rank, 0), "the sum is there already");
        drop(held);
        // The default stream is this thread.
        self.context.default_stream().wait(&event)?;
        ensure!(event.is_complete() && data == self.sums(LONG), "after the wait");
        println!("all right");
        Ok(())
    }

    /// Streams wait for each other by events alone, and page-locked memory is copied in the background.
    fn events(&self) -> anyhow::Result<()> {
        let other = self.context.new_stream()?;
        let from = self.stream.clone_htod(&values(0, LONG))?;
        // SAFETY: fresh memory of the stand-in is filled.
        let (mut first, mut second) =
            unsafe { (self.context.alloc_pinned::<f32>(LONG)?, self.context.alloc_pinned::<f32>(LONG)?) };
        ensure!(first.as_slice()?.iter().all(|element| element.is_nan()), "fresh memory is poisoned");
        let (first, second) = (first.as_mut_ptr()?, second.as_mut_ptr()?);
        let bytes = LONG * size_of::<f32>();
        let (source, _record) = from.device_ptr(&self.stream);
        let held = self.hold(&self.stream)?;
        // SAFETY: all three are `bytes` long and live until the last event is waited for.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(first.cast(), source, bytes, self.stream.cu_stream()).result()?;
            let event = self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            let last = self.context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            ensure!(last.is_complete(), "an event that was never recorded is complete");
            other.wait(&event)?;
            sys::cuMemcpyDtoHAsync_v2(second.cast(), first as u64, bytes, other.cu_stream()).result()?;
            last.record(&other)?;
            ensure!(!event.is_complete() && !last.is_complete() && (*second).is_nan(), "the copies did not wait");
            drop(held);
            last.synchronize()?;
            ensure!(event.is_complete(), "the second stream did not wait");
            ensure!(std::slice::from_raw_parts(second, LONG) == values(0, LONG), "the wrong thing was copied");
            println!("{} ms between the copies", event.elapsed_ms(&last)?);
        }
        Ok(())
    }

    /// The last rank sums fewer elements than the others.
    fn differ(&self) -> anyhow::Result<()> {
        let ranks = self.ranks(true)?;
        let mut data = values(self.rank, 100 - (self.rank + 1) / self.world);
        ranks.all_reduce(&mut data)?;
        ranks.wait()?;
        Ok(())
    }

    /// What is called in a group begins at its end.
    fn group(&self) -> anyhow::Result<()> {
        let ranks = self.ranks(true)?;
        let mut parts = [values(self.rank, LONG), values(self.rank, 1000)];
        nccl(result::group_start())?;
        for part in &mut parts {
            ranks.all_reduce(part)?;
        }
        self.stream.synchronize()?;
        ensure!(parts[0] == values(self.rank, LONG), "the group has not ended");
        nccl(result::group_end())?;
        self.stream.synchronize()?;
        ensure!(parts[0] == self.sums(LONG) && parts[1] == self.sums(1000));
        println!("all right");
        Ok(())
    }

    /// Sums again and again over a communicator that does not block, looks for errors while it waits, and aborts on the
    /// first.
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
                // SAFETY: the handle is of this process, and nobody uses it any more.
                nccl(unsafe { result::comm_abort(ranks.handle) })?;
                // The stream goes on.
                self.stream.synchronize()?;
                println!("aborted");
                return Ok(());
            }
            if data != self.sums(LONG) {
                println!("step {step}: wrong");
            }
            println!("step {step}");
        }
        // SAFETY: the handle is of this process, and nobody uses it any more.
        nccl(unsafe { result::comm_destroy(ranks.handle) })?;
        Ok(())
    }

    /// The sum over all ranks.
    fn sums(&self, elements: usize) -> Vec<f32> {
        let sum = |index| (0..self.world).map(|rank| value(rank, index)).sum();
        (0..elements).map(sum).collect()
    }
}
