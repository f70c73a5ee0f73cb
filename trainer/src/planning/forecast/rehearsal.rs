//! The rehearsal: a few real steps on synthetic latents, which show how long a step takes on this machine.

use std::cell::OnceCell;

use arinar_collective::{
    Collective, Reduction, agree,
    cuda::Gpu,
    machine::{allocator, memory},
};
use arinar_data::{Reporter, read::BatchSource};
use serde::Serialize;
use tch::Device;

use super::{
    eta::{StepTimes, TimedStep, extrapolate},
    memory::{MemoryEstimate, largest_micro},
    processor::Processor,
    step_budget::{affordable_share, affordable_steps},
};
use crate::{
    batch_source::{Data, RankShare},
    config::{BatchShare, TrainConfig},
    oom_guard::guard,
    rank_context::RankContext,
    startup::Startup,
    stop::Stop,
    train::Training,
};

/// The first steps do not count: they allocate memory and choose kernels.
const WARM_UP_STEPS: usize = 2;
/// Number of steps with a single image per rank before the rehearsal proper.
const TRIAL_STEPS: usize = 2;
/// The share of free memory that a rehearsal may use.
const MEMORY_SHARE: f64 = 0.8;
/// Number of synthetic samples: enough that none repeats.
const SAMPLES: u64 = 1_000_000;

/// The result of a rehearsal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Rehearsal {
    /// Number of steps that count.
    pub steps: usize,
    /// Images per rank in each of these steps.
    pub images_per_rank: usize,
    /// Images per rank in a step of the run. They are more if such steps would have taken too long.
    pub images_per_rank_in_run: usize,
    /// Times of the rehearsed steps.
    #[serde(rename = "pace")]
    pub step_times: StepTimes,
    /// Seconds of a step of the run: the median, or an extrapolation from it.
    pub step_seconds: f64,
    /// Memory at the end on the rank that uses most, in bytes. On GPUs it is GPU memory, and 0 if the GPU does not report it.
    pub resident_bytes: u64,
    /// Memory of the rehearsal according to the estimate that is also made for the run.
    pub estimated_bytes: u64,
}

/// A rehearsal, or the reason why there is none.
pub(crate) type RehearsalOutcome = Result<Rehearsal, String>;

/// Rehearses steps of a run in which each rank computes `batch`. All ranks call it together. Too little memory, whether by
/// the estimate or because it runs out, is not an error but the reason why there is no rehearsal.
///
/// # Errors
/// The same as those of [`Training::run`].
pub(crate) fn rehearse(
    context: &RankContext<'_>,
    config: &TrainConfig,
    batch: BatchShare,
) -> Result<RehearsalOutcome, Stop> {
    let collective = context.collective;
    // All ranks must choose the same sizes, so they use the same numbers.
    let process_bytes = reduce(collective, memory::resident() as f64, Reduction::Max)? as u64;
    let stage = Stage { context, config, batch, process_bytes, gpu: open_gpu(context.device) };
    let free = stage.free_for_rank()?;
    let fits = |micro| stage.estimate(BatchShare { micro, accumulation: 1 }) as f64 <= free;
    let Some(max_micro) = largest_micro(batch.micro, fits) else {
        return Ok(Err("memory is too small for a single image per rank".to_owned()));
    };
    allocator::keep_freed_memory();
    if collective.world_size() > 1 {
        return stage.perform(max_micro);
    }
    // A single rank may stop anywhere, because no other rank waits for it.
    let performed = guard(|| stage.perform(max_micro))?;
    Ok(performed.unwrap_or_else(|| Err(out_of_memory(max_micro))))
}

/// The conditions of a rehearsal.
struct Stage<'a> {
    context: &'a RankContext<'a>,
    config: &'a TrainConfig,
    /// The share of each rank in a step of the run.
    batch: BatchShare,
    /// Resident memory of each process before the rehearsal, in bytes.
    process_bytes: u64,
    /// The GPU of this rank, and its free memory before the rehearsal; `None` if the GPU does not report it.
    gpu: Option<(Gpu, u64)>,
}

fn open_gpu(device: Device) -> Option<(Gpu, u64)> {
    let Device::Cuda(ordinal) = device else { return None };
    let gpu = Gpu::open(ordinal).ok()?;
    let (free, _) = gpu.memory().ok()?;
    Some((gpu, free))
}

fn out_of_memory(max_micro: usize) -> String {
    let fix = match max_micro {
        1 => "use a machine or GPUs with more memory, or fewer ranks",
        _ => "set batch.micro lower (the global batch stays)",
    };
    format!("memory ran out with micro-batches of at most {max_micro} image(s); {fix}")
}

impl Stage<'_> {
    /// Rehearses with micro-batches of at most `max_micro` images: first steps with one image, then steps of a size that
    /// follows from their time.
    fn perform(&self, max_micro: usize) -> Result<RehearsalOutcome, Stop> {
        let (collective, batch) = (self.context.collective, self.batch);
        let one = BatchShare { micro: 1, accumulation: 1 };
        let (first, second) = (with_batch(self.config, collective.world_size(), one), OnceCell::new());
        let mut training = begin(self.context, &first, one)?;
        if !self.memory_suffices(&mut training)? {
            return Ok(Err(out_of_memory(1)));
        }
        let trials = run_steps(&mut training, TRIAL_STEPS, "rehearsal with one image per rank")?;
        let seconds = reduce(collective, trials.last().copied().unwrap_or_default(), Reduction::Max)?;
        let small = TimedStep { images: 1, seconds };
        let share = affordable_share(batch, max_micro, small.seconds);
        training.config = second.get_or_init(|| with_batch(self.config, collective.world_size(), share));
        training.worker.share.batch = share;
        training.worker.source = source(training.config, training.worker.share)?;
        if !self.memory_suffices(&mut training)? {
            return Ok(Err(out_of_memory(share.micro)));
        }
        let count = affordable_steps(small.seconds * images(share) as f64);
        let times = run_steps(&mut training, count, "rehearsal")?;
        self.evaluate(small, share, times.get(WARM_UP_STEPS.min(count / 2)..).unwrap_or_default()).map(Ok)
    }

    /// Computes the result from the steps that count, in which each rank computed `share`.
    fn evaluate(&self, small: TimedStep, share: BatchShare, counted: &[f64]) -> Result<Rehearsal, Stop> {
        let (collective, batch) = (self.context.collective, self.batch);
        let own = StepTimes::new(counted).ok_or_else(|| Stop::failure("no step was rehearsed"))?;
        let step_times = StepTimes { median: reduce(collective, own.median, Reduction::Max)?, ..own };
        let large = TimedStep { images: images(share), seconds: step_times.median };
        Ok(Rehearsal {
            steps: counted.len(),
            images_per_rank: images(share),
            images_per_rank_in_run: images(batch),
            step_times,
            step_seconds: extrapolate(small, large, images(batch)),
            resident_bytes: reduce(collective, self.used_bytes() as f64, Reduction::Max)? as u64,
            estimated_bytes: self.estimate(share),
        })
    }

    /// Computes forward and backward passes on each GPU alone, before the ranks make a step together: a rank that runs out of
    /// memory within a step would leave the others waiting. On CPUs this would show nothing, because the system ends a
    /// process that uses too much memory.
    fn memory_suffices(&self, training: &mut Training<'_>) -> Result<bool, Stop> {
        if self.processor() == Processor::Cpu || self.context.collective.world_size() == 1 {
            return Ok(true);
        }
        let step = training.step;
        let passed = guard(|| training.worker.accumulate(step).failure.map_or(Ok(()), Err));
        let passed = agree(self.context.collective, passed)?;
        training.state.parameters.zero_gradients();
        let passed = if passed.is_some() { 1.0 } else { 0.0 };
        Ok(reduce(self.context.collective, passed, Reduction::Min)? > 0.0)
    }

    fn processor(&self) -> Processor {
        self.context.device.into()
    }

    /// Estimates the bytes that a rank needs in the memory it computes in.
    fn estimate(&self, share: BatchShare) -> u64 {
        let (processor, world_size) = (self.processor(), self.context.collective.world_size());
        let memory = MemoryEstimate::of_rank(self.config, processor, world_size, share, self.process_bytes);
        match processor {
            Processor::Cpu => memory.while_training(),
            Processor::Gpu => memory.on_gpu(),
        }
    }

    /// Returns the bytes that every rank may use in the memory it computes in: the minimum over all ranks.
    fn free_for_rank(&self) -> Result<f64, Stop> {
        let free = match (self.processor(), &self.gpu) {
            (Processor::Gpu, Some((_, free))) => MEMORY_SHARE * *free as f64,
            (Processor::Gpu, None) => f64::MAX,
            (Processor::Cpu, _) => {
                let local_world_size = self.context.launch.local_world_size;
                let free =
                    memory::available().map_or(f64::MAX, |free| MEMORY_SHARE * free as f64 / local_world_size as f64);
                free + memory::resident() as f64
            }
        };
        reduce(self.context.collective, free, Reduction::Min)
    }

    /// Returns the bytes that this rank uses in the memory it computes in, including memory that libtorch keeps after it is
    /// freed, as in a run.
    fn used_bytes(&self) -> u64 {
        match (self.processor(), &self.gpu) {
            (Processor::Gpu, Some((gpu, before))) => gpu.memory().map_or(0, |(now, _)| before.saturating_sub(now)),
            (Processor::Gpu, None) => 0,
            (Processor::Cpu, _) => memory::resident(),
        }
    }
}

fn reduce(collective: &dyn Collective, value: f64, reduction: Reduction) -> Result<f64, Stop> {
    let mut value = [value];
    collective.all_reduce_scalars(&mut value, reduction)?;
    Ok(value[0])
}

fn images(batch: BatchShare) -> usize {
    batch.micro * batch.accumulation
}

/// Returns the configuration with the global batch that gives each rank this share.
fn with_batch(config: &TrainConfig, world_size: usize, share: BatchShare) -> TrainConfig {
    let mut config = config.clone();
    config.batch.global = images(share) * world_size;
    config
}

fn begin<'a>(context: &RankContext<'a>, config: &'a TrainConfig, batch: BatchShare) -> Result<Training<'a>, Stop> {
    Startup::rehearsal(context.clone(), config, batch).rehearsal_training(&Data::Synthetic(SAMPLES))
}

fn source(config: &TrainConfig, share: RankShare) -> Result<Box<dyn BatchSource>, Stop> {
    Data::Synthetic(SAMPLES).batches(config, share, None)
}

/// Trains `count` steps and returns the seconds of each. Rank 0 reports them while they are made.
fn run_steps(training: &mut Training<'_>, count: usize, name: &str) -> Result<Vec<f64>, Stop> {
    let mut times = Vec::new();
    for step in 1..=count {
        let seconds = training.rehearse()?;
        if training.context.collective.rank() == 0 {
            Reporter::console().note(&format!("{name}: step {step} of {count}, {seconds:.2} s"));
        }
        times.push(seconds);
    }
    Ok(times)
}
