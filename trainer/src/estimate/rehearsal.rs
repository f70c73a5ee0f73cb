//! Ten real steps in memory, on latents that are noise of the right shape: how long a step takes here.

use std::sync::Arc;

use serde::Serialize;

use super::{
    eta::{Pace, Sample, extrapolate},
    memory::{Memory, largest_micro},
};
use crate::{
    allocator,
    checkpoint::Saver,
    collective::{Collective, Reduction},
    config::{BatchShare, TrainConfig},
    exit::{Preemption, Stop},
    logs::Logs,
    memory,
    run::{Beginning, Model, Placement, assemble},
    source::{BatchSource, Data, RankShare},
    train::{Plan, Training},
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
    /// Bytes that the rank with the most held at the end.
    pub resident_bytes: u64,
    /// Bytes that the same estimate as for the run gives for the rehearsal.
    pub estimated_bytes: u64,
}

/// Rehearses a step of `batch` a rank. All ranks call it together. `None` where even one picture a rank is too much for
/// the memory of some machine.
///
/// # Errors
/// As of training.
pub fn rehearse(
    collective: &dyn Collective,
    placement: &Placement,
    config: &TrainConfig,
    batch: BatchShare,
) -> Result<Option<Rehearsal>, Stop> {
    // Ranks must come to the same sizes, so they go by the same numbers.
    let process = agreed(collective, memory::resident() as f64, Reduction::Max)? as u64;
    let free = free_for_rank(collective, placement)?;
    let estimate = |share| Memory::of_rank(config, collective.world(), share, process).while_training();
    let fits = |micro| estimate(BatchShare { micro, accumulation: 1 }) as f64 <= free;
    let Some(most) = largest_micro(batch.micro, fits) else { return Ok(None) };
    allocator::keep_freed_memory();
    let one = BatchShare { micro: 1, accumulation: 1 };
    let (first, second) = (rehearsed(config, collective.world(), one), std::cell::OnceCell::new());
    let mut training = begin(collective, placement, &first, one)?;
    let tries = steps(&mut training, TRIES, "rehearsal with one picture a rank")?;
    let seconds = agreed(collective, tries.last().copied().unwrap_or_default(), Reduction::Max)?;
    let small = Sample { images: 1, seconds };
    let share = affordable(batch, most, small.seconds);
    training.config = second.get_or_init(|| rehearsed(config, collective.world(), share));
    training.worker.share.batch = share;
    training.worker.source = source(training.config, training.worker.share)?;
    let count = steps_within(BUDGET, small.seconds * images(share) as f64);
    let times = steps(&mut training, count, "rehearsal")?;
    let counted = times.get(WARM_UP.min(count / 2)..).unwrap_or_default();
    let pace = Pace::of(counted).ok_or_else(|| Stop::failure("no step was rehearsed"))?;
    let pace = Pace { median: agreed(collective, pace.median, Reduction::Max)?, ..pace };
    let large = Sample { images: images(share), seconds: pace.median };
    Ok(Some(Rehearsal {
        steps: counted.len(),
        images_per_rank: images(share),
        images_per_rank_in_run: images(batch),
        pace,
        step_seconds: extrapolate(small, large, images(batch)),
        resident_bytes: agreed(collective, memory::resident() as f64, Reduction::Max)? as u64,
        estimated_bytes: estimate(share),
    }))
}

/// Bytes that each rank may take, the least of all machines.
fn free_for_rank(collective: &dyn Collective, placement: &Placement) -> Result<f64, Stop> {
    let ranks_here = placement.role(collective).ranks_here;
    let free = memory::available().map_or(f64::MAX, |free| MEMORY_SHARE * free as f64 / ranks_here as f64);
    agreed(collective, free + memory::resident() as f64, Reduction::Min)
}

fn agreed(collective: &dyn Collective, value: f64, how: Reduction) -> Result<f64, Stop> {
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

fn begin<'a>(
    collective: &'a dyn Collective,
    placement: &Placement,
    config: &'a TrainConfig,
    batch: BatchShare,
) -> Result<Training<'a>, Stop> {
    let threads = config.train.threads.unwrap_or(placement.threads);
    tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
    let share = RankShare { rank: collective.rank(), world: collective.world(), batch };
    let beginning = Beginning {
        plan: Plan::new(config, SAMPLES),
        share,
        source: source(config, share)?,
        sample_log: None,
        dataset: Data::Synthetic(SAMPLES).facts(),
        step: 0,
    };
    let placement =
        Placement { preemption: Preemption::default(), vitals: Arc::clone(&placement.vitals), ..placement.clone() };
    let saver = Saver::idle(placement.role(collective)).map_err(Stop::failure)?;
    let model = Model::new(collective, config, placement.device)?;
    Ok(assemble(collective, config, placement, model, saver, Logs::silent(), beginning))
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
        if training.collective.rank() == 0 {
            eprintln!("{what}: step {step} of {count}, {seconds:.2} s");
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
