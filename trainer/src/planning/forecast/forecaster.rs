//! The computation of a forecast from a configuration, a dataset, and the ranks of a job.

use std::time::Instant;

use xxhash_rust::xxh3::xxh3_128;

use super::{
    checkpoints::{CheckpointForecast, checkpoint_bytes},
    egress::{DatasetAccess, Egress},
    eta::Eta,
    figures::{Forecast, LengthFigures, MeasuredFigures, ModelFigures},
    gpus::{GPU_MODELS, GpuForecast, GpuModel, UTILISATION},
    memory::MemoryEstimate,
    processor::Processor,
    rehearsal::RehearsalOutcome,
    unsupported::NO_EVALUATION,
};
use crate::{
    batch_source::Data,
    config::{BatchShare, TrainConfig},
    run_length::RunLength,
    stop::Stop,
};

/// Computes the figures of a forecast.
pub(crate) struct Forecaster<'a> {
    pub config: &'a TrainConfig,
    pub batch: BatchShare,
    pub ranks: usize,
    pub machines: usize,
    pub threads: usize,
    pub processor: Processor,
    /// Resident memory of this process before the model is created, in bytes.
    pub process_bytes: u64,
}

impl Forecaster<'_> {
    /// Computes all figures that need no rehearsal.
    ///
    /// # Errors
    /// Returns an error if the limit of the cache is too small.
    pub(crate) fn forecast(&self, data: &Data) -> Result<Forecast, Stop> {
        let config = self.config;
        let run_length = RunLength::new(config, data.samples());
        let length = self.length(&run_length);
        Ok(Forecast {
            run: config.run.name.clone(),
            ranks: self.ranks,
            machines: self.machines,
            threads: self.threads,
            processor: self.processor,
            precision: config.precision,
            model: self.model(),
            length,
            memory_per_rank: self.memory(self.processor),
            checkpoint_bytes: checkpoint_bytes(&config.model),
            egress: self.egress(data, length.epochs)?,
            rehearsal: None,
            not_rehearsed: None,
            measured: None,
            eta_leaves_out: self.eta_leaves_out(),
            gpus: GPU_MODELS.iter().map(|gpu| self.on_gpus(gpu, &run_length)).collect(),
            gpu_utilisation: UTILISATION,
        })
    }

    /// Adds the figures that follow from a rehearsal, or the reason why there is none.
    pub(crate) fn with_rehearsal(&self, forecast: Forecast, data: &Data, outcome: RehearsalOutcome) -> Forecast {
        match outcome {
            Ok(rehearsal) => {
                let length = RunLength::new(self.config, data.samples());
                let measured = self.measured(&length, rehearsal.step_seconds);
                Forecast { rehearsal: Some(rehearsal), measured: Some(measured), ..forecast }
            }
            Err(reason) => Forecast { not_rehearsed: Some(reason), ..forecast },
        }
    }

    fn model(&self) -> ModelFigures {
        let model = &self.config.model;
        let training_flops = model.training_flops();
        ModelFigures {
            outer_parameters: model.outer_parameter_count(),
            head_parameters: model.head_parameter_count(),
            tokens: model.sequence_length(),
            masked_tokens: model.mean_masked(),
            training_flops,
            step_flops: training_flops.total() * self.config.batch.global as f64,
        }
    }

    fn length(&self, length: &RunLength) -> LengthFigures {
        let global_batch = self.config.batch.global;
        LengthFigures {
            samples: length.samples,
            steps_per_epoch: length.samples as f64 / global_batch as f64,
            steps: length.total_steps,
            epochs: length.epoch(length.total_steps, global_batch),
            global_batch,
            micro_batch: self.batch.micro,
            accumulation: self.batch.accumulation,
        }
    }

    fn memory(&self, processor: Processor) -> MemoryEstimate {
        MemoryEstimate::of_rank(self.config, processor, self.ranks, self.batch, self.process_bytes)
    }

    fn eta_leaves_out(&self) -> Vec<String> {
        let always = [
            "waiting for data: the rehearsal uses synthetic data",
            "a checkpoint to resume from: this is the time of the whole run, not of the rest of it",
        ];
        let evaluation = self.config.eval.as_ref().map(|_| NO_EVALUATION);
        always.into_iter().chain(evaluation).map(str::to_owned).collect()
    }

    fn egress(&self, data: &Data, epochs: f64) -> Result<Option<Egress>, Stop> {
        let Data::Encoded(dataset) = data else { return Ok(None) };
        let access = DatasetAccess {
            is_cached: dataset.is_cached(),
            cache_limit: self.config.data.cache_limit.map(|limit| limit.0),
            window: self.config.data.shuffle_window,
            seed: self.config.seed,
            epochs,
            machines: self.machines as u64,
        };
        Ok(Egress::simulate(&dataset.manifest, &access).map(Some)?)
    }

    fn measured(&self, length: &RunLength, step_seconds: f64) -> MeasuredFigures {
        let images_per_second = self.config.batch.global as f64 / step_seconds;
        let checkpoints = CheckpointForecast::new(self.config, length, step_seconds);
        let bytes_per_rank = checkpoints.bytes as f64 / self.ranks as f64;
        let eta = Eta {
            steps: length.total_steps as f64 * step_seconds,
            checkpoints: checkpoints.saved as f64 * bytes_per_rank / copy_rate(),
        };
        let flops_per_second = images_per_second * self.config.model.training_flops().total();
        MeasuredFigures { images_per_second, flops_per_second, eta, checkpoints }
    }

    fn on_gpus(&self, gpu: &GpuModel, length: &RunLength) -> GpuForecast {
        let flops = self.config.model.training_flops().total();
        let images_per_second = gpu.images_per_second(self.config.precision, self.ranks, flops);
        let step_seconds = self.config.batch.global as f64 / images_per_second;
        GpuForecast {
            gpu: gpu.name,
            images_per_second,
            seconds: length.total_steps as f64 * step_seconds,
            fits: gpu.holds(self.memory(Processor::Gpu).on_gpu()),
            checkpoint_bytes: CheckpointForecast::new(self.config, length, step_seconds).written_bytes,
        }
    }
}

/// Measures the rate in bytes per second at which this machine copies and hashes memory, as saving a checkpoint does.
fn copy_rate() -> f64 {
    let source = vec![1_u8; 32 << 20];
    let began = Instant::now();
    let copy = source.clone();
    std::hint::black_box(xxh3_128(&copy));
    copy.len() as f64 / began.elapsed().as_secs_f64().max(1e-9)
}
