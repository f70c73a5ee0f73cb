//! `--plan`: what a run will need and how long it will take, before it starts.

mod checkpoints;
mod egress;
mod eta;
mod gpus;
mod memory;
mod rehearsal;
mod report;

use std::time::Instant;

use arinar_model::{flops::Flops, precision::Precision};
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

pub(crate) use checkpoints::{Checkpoints, checkpoint_bytes};
use egress::{Egress, Reading};
use eta::Eta;
use gpus::{GPUS, Gpu, OnGpus, UTILISATION};
pub use memory::EXACTNESS;
pub(crate) use memory::{Memory, Processor, largest_micro};
use rehearsal::{Rehearsal, Rehearsed, rehearse};

use crate::{
    batch_source::Data,
    config::{BatchShare, LogFormat, TrainConfig},
    rank_context::RankContext,
    reporter::write_line,
    run_length::RunLength,
    stop::Stop,
};
use arinar_collective::{Reduction, agree};

/// What becomes of the section `eval` of a configuration.
pub const NO_EVALUATION: &str = "eval is configured, but this version does not evaluate yet";

/// Everything there is to say. In JSON as it stands here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// `run.name`.
    pub run: String,
    /// Number of ranks.
    pub ranks: usize,
    /// Machines they are on.
    pub machines: usize,
    /// libtorch threads of each rank.
    pub threads: usize,
    /// What each rank computes on.
    pub processor: Processor,
    /// Number format.
    pub precision: Precision,
    /// The model's size and work.
    pub model: ModelFigures,
    /// Length of the run.
    pub length: Length,
    /// Bytes of a rank.
    pub memory_per_rank: Memory,
    /// Bytes of one checkpoint.
    pub checkpoint_bytes: u64,
    /// What is fetched from the store of the dataset; null for a synthetic one.
    pub egress: Option<Egress>,
    /// The measured steps; null where memory is too small for them.
    pub rehearsal: Option<Rehearsal>,
    /// Why there are none; null where there are.
    pub not_rehearsed: Option<String>,
    /// The run at the pace of the rehearsal.
    pub here: Option<Here>,
    /// What the time in it does not count.
    pub eta_leaves_out: Vec<String>,
    /// The run on as many GPUs as there are ranks: an estimate, no GPU has run this.
    pub gpus: Vec<OnGpus>,
    /// The share of a GPU's peak rate that is assumed.
    pub gpu_utilisation: f64,
}

/// Parameters and operations of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ModelFigures {
    /// Trainable parameters of the outer layer.
    pub outer_parameters: i64,
    /// Trainable parameters of the inner layer.
    pub head_parameters: i64,
    /// Tokens of a picture.
    pub tokens: i64,
    /// Of them masked, on average.
    pub masked_tokens: f64,
    /// Operations of one picture in training, forward and backward.
    pub training_flops: Flops,
    /// Operations of a step.
    pub step_flops: f64,
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Length {
    /// Samples of an epoch.
    pub samples: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: f64,
    /// Steps of the run.
    pub steps: u64,
    /// Epochs of the run.
    pub epochs: f64,
    /// Pictures of a step.
    pub global_batch: usize,
    /// Of them on one rank at once.
    pub micro_batch: usize,
    /// Micro-batches of a rank one after the other.
    pub accumulation: usize,
}

/// The run on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Here {
    /// Pictures a second on all ranks.
    pub images_per_second: f64,
    /// Operations a second on all ranks.
    pub flops_per_second: f64,
    /// Seconds.
    pub eta: Eta,
    /// Checkpoints at this pace.
    pub checkpoints: Checkpoints,
}

/// Rehearses, and prints the forecast on rank 0. All ranks call it together; nothing is written anywhere.
///
/// # Errors
/// A configuration or dataset that does not do, or a failure of the rehearsal.
pub fn plan(context: RankContext<'_>, config: &TrainConfig) -> Result<(), Stop> {
    let collective = context.collective;
    let batch = config.share_batch(collective.world_size(), context.full_world_size());
    let batch = agree(collective, batch.map_err(Stop::configuration))?;
    let data = if collective.rank() == 0 { Data::open(config).map(Some) } else { Ok(None) };
    let data = agree(collective, data)?;
    let mut leaders = [f64::from(u8::from(context.launch.is_node_leader()))];
    collective.all_reduce_scalars(&mut leaders, Reduction::Sum)?;
    let setting = Setting {
        config,
        batch,
        ranks: collective.world_size(),
        machines: leaders[0] as usize,
        threads: config.train.threads.unwrap_or(context.threads),
        processor: context.device.into(),
        process: arinar_collective::machine::memory::resident(),
    };
    let forecast = agree(collective, data.as_ref().map(|data| setting.forecast(data)).transpose())?;
    // What needs no steps is told before them: they may end the program on a machine that is too small.
    if let (Some(forecast), LogFormat::Text) = (&forecast, config.log.format) {
        write_line(&forecast.text());
    }
    let rehearsed = rehearse(&context, config, batch)?;
    let (Some(data), Some(forecast)) = (data, forecast) else { return Ok(()) };
    let forecast = setting.with_measured(forecast, &data, rehearsed);
    match config.log.format {
        LogFormat::Text => write_line(&forecast.measured_text()),
        LogFormat::Json => write_line(&serde_json::to_string(&forecast).map_err(Stop::failure)?),
    }
    Ok(())
}

/// What the figures follow from.
struct Setting<'a> {
    config: &'a TrainConfig,
    batch: BatchShare,
    ranks: usize,
    machines: usize,
    threads: usize,
    processor: Processor,
    process: u64,
}

impl Setting<'_> {
    /// All that needs no rehearsal.
    fn forecast(&self, data: &Data) -> Result<Forecast, Stop> {
        let (config, model) = (self.config, &self.config.model);
        let plan = RunLength::new(config, data.samples());
        let training_flops = model.training_flops();
        let global_batch = config.batch.global;
        let length = Length {
            samples: plan.samples,
            steps_per_epoch: plan.samples as f64 / global_batch as f64,
            steps: plan.total_steps,
            epochs: plan.epoch(plan.total_steps, global_batch),
            global_batch,
            micro_batch: self.batch.micro,
            accumulation: self.batch.accumulation,
        };
        Ok(Forecast {
            run: config.run.name.clone(),
            ranks: self.ranks,
            machines: self.machines,
            threads: self.threads,
            processor: self.processor,
            precision: config.precision,
            model: ModelFigures {
                outer_parameters: model.outer_parameter_count(),
                head_parameters: model.head_parameter_count(),
                tokens: model.sequence_length(),
                masked_tokens: model.mean_masked(),
                training_flops,
                step_flops: training_flops.total() * global_batch as f64,
            },
            length,
            memory_per_rank: self.memory(self.processor),
            checkpoint_bytes: checkpoint_bytes(model),
            egress: self.egress(data, length.epochs)?,
            rehearsal: None,
            not_rehearsed: None,
            here: None,
            eta_leaves_out: self.left_out(),
            gpus: GPUS.iter().map(|gpu| self.on_gpus(gpu, &plan)).collect(),
            gpu_utilisation: UTILISATION,
        })
    }

    /// What follows from a rehearsal, or why there is none.
    fn with_measured(&self, forecast: Forecast, data: &Data, rehearsed: Rehearsed) -> Forecast {
        let plan = RunLength::new(self.config, data.samples());
        match rehearsed {
            Ok(rehearsal) => {
                let here = self.here(&plan, rehearsal.step_seconds);
                Forecast { rehearsal: Some(rehearsal), here: Some(here), ..forecast }
            }
            Err(why) => Forecast { not_rehearsed: Some(why), ..forecast },
        }
    }

    fn memory(&self, processor: Processor) -> Memory {
        Memory::of_rank(self.config, processor, self.ranks, self.batch, self.process)
    }

    fn left_out(&self) -> Vec<String> {
        let always = [
            "waiting for data: the rehearsal is on noise",
            "a checkpoint to go on from: this is the time of the whole run, not of what remains",
        ];
        let evaluation = self.config.eval.as_ref().map(|_| NO_EVALUATION);
        always.into_iter().chain(evaluation).map(str::to_owned).collect()
    }

    fn egress(&self, data: &Data, epochs: f64) -> Result<Option<Egress>, Stop> {
        let Data::Encoded(dataset) = data else { return Ok(None) };
        let reading = Reading {
            cached: dataset.is_cached(),
            cache_limit: self.config.data.cache_limit.map(|limit| limit.0),
            window: self.config.data.shuffle_window,
            seed: self.config.seed,
            epochs,
            machines: self.machines as u64,
        };
        Ok(Egress::of_run(&dataset.manifest, &reading).map(Some)?)
    }

    fn here(&self, plan: &RunLength, step_seconds: f64) -> Here {
        let images_per_second = self.config.batch.global as f64 / step_seconds;
        let checkpoints = Checkpoints::of_run(self.config, plan, step_seconds);
        let of_rank = checkpoints.bytes as f64 / self.ranks as f64;
        let eta = Eta {
            steps: plan.total_steps as f64 * step_seconds,
            checkpoints: checkpoints.saved as f64 * of_rank / copy_rate(),
        };
        let flops_per_second = images_per_second * self.config.model.training_flops().total();
        Here { images_per_second, flops_per_second, eta, checkpoints }
    }

    fn on_gpus(&self, gpu: &Gpu, plan: &RunLength) -> OnGpus {
        let flops = self.config.model.training_flops().total();
        let images_per_second = gpu.images_per_second(self.config.precision, self.ranks, flops);
        let step_seconds = self.config.batch.global as f64 / images_per_second;
        OnGpus {
            gpu: gpu.name,
            images_per_second,
            seconds: plan.total_steps as f64 * step_seconds,
            fits: gpu.fits(self.memory(Processor::Gpu).on_gpu()),
            checkpoint_bytes: Checkpoints::of_run(self.config, plan, step_seconds).written_bytes,
        }
    }
}

/// Bytes a second at which memory is copied and hashed here, as a checkpoint does.
fn copy_rate() -> f64 {
    let source = vec![1_u8; 32 << 20];
    let began = Instant::now();
    let copy = source.clone();
    std::hint::black_box(xxh3_128(&copy));
    copy.len() as f64 / began.elapsed().as_secs_f64().max(1e-9)
}
