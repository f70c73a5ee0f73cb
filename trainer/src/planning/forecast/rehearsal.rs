//! Ten real steps in memory, on latents that are noise of the right shape: how long a step takes here.

use std::cell::OnceCell;

use serde::Serialize;
use tch::Device;

use arinar_collective::{
    Reduction, agree,
    cuda::Gpu,
    machine::{allocator, memory},
};
use arinar_data::read::BatchSource;

use super::{
    eta::{Pace, Sample, extrapolate},
    memory::{Memory, Processor, largest_micro},
};
use crate::{
    batch_source::{Data, RankShare},
    config::{BatchShare, TrainConfig},
    oom_guard::guard,
    rank_context::RankContext,
    reporter::write_error_line,
    startup::Startup,
    stop::Stop,
    train::Training,
};

/// Steps of a rehearsal.
const STEPS: usize = 10;
/// The first of them do not count: memory is allocated, kernels are chosen.
const WARM_UP: usize = 2;
/// Fewest steps, where one takes long.
const FEWEST: usize = 4;
/// About the longest that all of it may take, in seconds.
const BUDGET: f64 = 60.0;
/// Pictures for which fewer steps are worth it.
const FEW_IMAGES: usize = 4;
/// Steps with a single picture a rank before it, to learn what a step costs.
const TRIES: usize = 2;
/// The share of free memory that a rehearsal may take.
const MEMORY_SHARE: f64 = 0.8;

/// How long steps took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rehearsal {
    /// Steps that count.
    pub steps: usize,
    /// Pictures of a rank in each of them.
    pub images_per_rank: usize,
    /// Pictures of a rank in a step of the run; more where those would have taken too long.
    pub images_per_rank_in_run: usize,
    /// Seconds of the steps that were rehearsed.
    pub pace: Pace,
    /// Seconds of a step of the run: the median, or what follows from it.
    pub step_seconds: f64,
    /// Bytes that the rank with the most held at the end; on GPUs of their memory, 0 where it does not say.
    pub resident_bytes: u64,
    /// Bytes that the same estimate as for the run gives for the rehearsal.
    pub estimated_bytes: u64,
}

/// A rehearsal, or why there is none.
pub type Rehearsed = Result<Rehearsal, String>;

/// Rehearses a step of `batch` a rank. All ranks call it together. That memory is too small, by the estimate or because
/// it runs out, is no failure.
///
/// # Errors
/// As of training.
pub(super) fn rehearse(context: &RankContext<'_>, config: &TrainConfig, batch: BatchShare) -> Result<Rehearsed, Stop> {
    let collective = context.collective;
    // Ranks must come to the same sizes, so they go by the same numbers.
    let process = agreed(collective, memory::resident() as f64, Reduction::Max)? as u64;
    let stage = Stage { context, config, batch, process, gpu: open_gpu(context.device) };
    let free = stage.free_for_rank()?;
    let fits = |micro| stage.estimate(BatchShare { micro, accumulation: 1 }) as f64 <= free;
    let Some(most) = largest_micro(batch.micro, fits) else {
        return Ok(Err("memory is too small for a single picture a rank".to_owned()));
    };
    allocator::keep_freed_memory();
    if collective.world_size() > 1 {
        return stage.perform(most);
    }
    // A rank by itself keeps nobody waiting, wherever it breaks off.
    let performed = guard(|| stage.perform(most))?;
    Ok(performed.unwrap_or_else(|| Err(out_of_memory(most))))
}

/// What a rehearsal goes by.
struct Stage<'a> {
    context: &'a RankContext<'a>,
    config: &'a TrainConfig,
    /// Of the run.
    batch: BatchShare,
    /// Bytes that each process holds already.
    process: u64,
    /// The GPU that this rank computes on, where it answers, and how many bytes of its memory are free before.
    gpu: Option<(Gpu, u64)>,
}

fn open_gpu(device: Device) -> Option<(Gpu, u64)> {
    let Device::Cuda(ordinal) = device else { return None };
    let gpu = Gpu::open(ordinal).ok()?;
    let (free, _) = gpu.memory().ok()?;
    Some((gpu, free))
}

fn out_of_memory(most: usize) -> String {
    let cure = match most {
        1 => "take a machine or GPUs with more memory, or fewer ranks",
        _ => "set batch.micro lower (the global batch stays)",
    };
    format!("memory ran out with at most {most} picture(s) at once a rank; {cure}")
}

impl Stage<'_> {
    /// With micro-batches of at most `most`.
    fn perform(&self, most: usize) -> Result<Rehearsed, Stop> {
        let (collective, batch) = (self.context.collective, self.batch);
        let one = BatchShare { micro: 1, accumulation: 1 };
        let (first, second) = (rehearsed(self.config, collective.world_size(), one), OnceCell::new());
        let mut training = begin(self.context, &first, one)?;
        if !self.memory_suffices(&mut training)? {
            return Ok(Err(out_of_memory(1)));
        }
        let tries = steps(&mut training, TRIES, "rehearsal with one picture a rank")?;
        let seconds = agreed(collective, tries.last().copied().unwrap_or_default(), Reduction::Max)?;
        let small = Sample { images: 1, seconds };
        let share = affordable(batch, most, small.seconds);
        training.config = second.get_or_init(|| rehearsed(self.config, collective.world_size(), share));
        training.worker.share.batch = share;
        training.worker.source = source(training.config, training.worker.share)?;
        if !self.memory_suffices(&mut training)? {
            return Ok(Err(out_of_memory(share.micro)));
        }
        let count = steps_within(BUDGET, small.seconds * images(share) as f64);
        let times = steps(&mut training, count, "rehearsal")?;
        let counted = times.get(WARM_UP.min(count / 2)..).unwrap_or_default();
        let pace = Pace::of(counted).ok_or_else(|| Stop::failure("no step was rehearsed"))?;
        let pace = Pace { median: agreed(collective, pace.median, Reduction::Max)?, ..pace };
        let large = Sample { images: images(share), seconds: pace.median };
        Ok(Ok(Rehearsal {
            steps: counted.len(),
            images_per_rank: images(share),
            images_per_rank_in_run: images(batch),
            pace,
            step_seconds: extrapolate(small, large, images(batch)),
            resident_bytes: agreed(collective, self.held() as f64, Reduction::Max)? as u64,
            estimated_bytes: self.estimate(share),
        }))
    }

    /// Takes the pictures of a step through the model on each GPU by itself, before ranks do it together: one that ran
    /// out of memory within a step would leave the others waiting. On CPUs nothing is found out this way: the system
    /// ends a process that takes too much.
    fn memory_suffices(&self, training: &mut Training<'_>) -> Result<bool, Stop> {
        if self.processor() == Processor::Cpu || self.context.collective.world_size() == 1 {
            return Ok(true);
        }
        let step = training.step;
        let passed = guard(|| training.worker.accumulate(step).failure.map_or(Ok(()), Err));
        let passed = agree(self.context.collective, passed)?;
        training.state.parameters.zero_gradients();
        let passed = if passed.is_some() { 1.0 } else { 0.0 };
        Ok(agreed(self.context.collective, passed, Reduction::Min)? > 0.0)
    }

    fn processor(&self) -> Processor {
        self.context.device.into()
    }

    /// Bytes that a rank needs, of its GPU if it has one.
    fn estimate(&self, share: BatchShare) -> u64 {
        let processor = self.processor();
        let memory = Memory::of_rank(self.config, processor, self.context.collective.world_size(), share, self.process);
        match processor {
            Processor::Cpu => memory.while_training(),
            Processor::Gpu => memory.on_gpu(),
        }
    }

    /// Bytes that each rank may take there, the least of all.
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
        agreed(self.context.collective, free, Reduction::Min)
    }

    /// Bytes that this rank holds there. What libtorch has freed and keeps counts, as it does in a run.
    fn held(&self) -> u64 {
        match (self.processor(), &self.gpu) {
            (Processor::Gpu, Some((gpu, before))) => gpu.memory().map_or(0, |(now, _)| before.saturating_sub(now)),
            (Processor::Gpu, None) => 0,
            (Processor::Cpu, _) => memory::resident(),
        }
    }
}

fn agreed(collective: &dyn arinar_collective::Collective, value: f64, how: Reduction) -> Result<f64, Stop> {
    let mut value = [value];
    collective.all_reduce_scalars(&mut value, how)?;
    Ok(value[0])
}

fn images(batch: BatchShare) -> usize {
    batch.micro * batch.accumulation
}

/// The share of a step that ten steps can have within the budget if a picture takes so long: the run's own, else as many
/// of its micro-batches as fit, else a smaller one. Where that would be hardly a picture, fewer steps have to do: steps
/// of different sizes tell what a picture adds.
fn affordable(batch: BatchShare, most: usize, seconds: f64) -> BatchShare {
    let within = |steps: usize| (BUDGET / steps as f64 / seconds.max(1e-9)) as usize;
    let affordable = within(STEPS).max(within(FEWEST).min(FEW_IMAGES));
    let micro = batch.micro.min(most).min(affordable).max(1);
    let accumulation = if micro < batch.micro { 1 } else { (affordable / micro).clamp(1, batch.accumulation) };
    BatchShare { micro, accumulation }
}

/// How many steps of so many seconds.
fn steps_within(budget: f64, seconds: f64) -> usize {
    ((budget / seconds.max(1e-9)) as usize).clamp(FEWEST, STEPS)
}

/// The run on synthetic latents, with so many of them in a step.
fn rehearsed(config: &TrainConfig, world: usize, batch: BatchShare) -> TrainConfig {
    let mut config = config.clone();
    config.batch.global = images(batch) * world;
    config
}

fn begin<'a>(context: &RankContext<'a>, config: &'a TrainConfig, batch: BatchShare) -> Result<Training<'a>, Stop> {
    Startup::rehearsal(context.clone(), config, batch).rehearsal_training(&Data::Synthetic(SAMPLES))
}

/// Enough for no sample to come twice.
const SAMPLES: u64 = 1_000_000;

fn source(config: &TrainConfig, share: RankShare) -> Result<Box<dyn BatchSource>, Stop> {
    Data::Synthetic(SAMPLES).batches(config, share, None)
}

/// Trains so many steps and returns the seconds of each; rank 0 tells of them as they come.
fn steps(training: &mut Training<'_>, count: usize, what: &str) -> Result<Vec<f64>, Stop> {
    let mut times = Vec::new();
    for step in 1..=count {
        let seconds = training.rehearse()?;
        if training.context.collective.rank() == 0 {
            write_error_line(&format!("{what}: step {step} of {count}, {seconds:.2} s"));
        }
        times.push(seconds);
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rehearsal_stays_within_its_budget() {
        let share = |micro, accumulation| BatchShare { micro, accumulation };
        assert_eq!(affordable(share(16, 2), 16, 0.01), share(16, 2), "the run's own step");
        assert_eq!(affordable(share(16, 4), 16, 0.15), share(16, 2), "fewer micro-batches");
        assert_eq!(affordable(share(64, 1), 64, 1.0), share(6, 1), "a smaller micro-batch");
        assert_eq!(affordable(share(64, 1), 3, 1.0), share(3, 1), "what memory holds");
        assert_eq!(affordable(share(64, 1), 64, 5.0), share(3, 1), "fewer steps");
        assert_eq!(affordable(share(64, 1), 64, 1000.0), share(1, 1));
        assert_eq!((steps_within(60.0, 1.0), steps_within(60.0, 9.0), steps_within(60.0, 1e4)), (10, 6, 4));
    }
}
