//! The figures of a forecast. Their serialized form is the JSON output of `--plan`.

use arinar_model::{flops::Flops, precision::Precision};
use serde::Serialize;

use super::{
    checkpoints::CheckpointForecast, egress::Egress, eta::Eta, gpus::GpuForecast, memory::MemoryEstimate,
    processor::Processor, rehearsal::Rehearsal,
};

/// The forecast for a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Forecast {
    /// `run.name`.
    pub run: String,
    /// Number of ranks.
    pub ranks: usize,
    /// Number of machines.
    pub machines: usize,
    /// Number of libtorch threads of each rank.
    pub threads: usize,
    /// The processor of each rank.
    pub processor: Processor,
    /// Number format of matrix products.
    pub precision: Precision,
    /// Size and work of the model.
    pub model: ModelFigures,
    /// Length of the run.
    pub length: LengthFigures,
    /// Memory of each rank.
    pub memory_per_rank: MemoryEstimate,
    /// Size of one checkpoint in bytes.
    pub checkpoint_bytes: u64,
    /// Downloads from the store of the dataset; `None` for a synthetic dataset.
    pub egress: Option<Egress>,
    /// The rehearsed steps; `None` if memory is too small for them.
    pub rehearsal: Option<Rehearsal>,
    /// The reason why there is no rehearsal.
    pub not_rehearsed: Option<String>,
    /// The run at the pace of the rehearsal.
    #[serde(rename = "here")]
    pub measured: Option<MeasuredFigures>,
    /// Parts of a run that the ETA does not include.
    pub eta_leaves_out: Vec<String>,
    /// Estimates for as many GPUs as there are ranks, from data sheets.
    pub gpus: Vec<GpuForecast>,
    /// The share of a GPU's peak rate that these estimates assume.
    pub gpu_utilisation: f64,
}

/// Parameters and operations of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct ModelFigures {
    /// Number of trainable parameters of the outer layer.
    pub outer_parameters: i64,
    /// Number of trainable parameters of the inner layer.
    pub head_parameters: i64,
    /// Number of tokens of an image.
    pub tokens: i64,
    /// Number of masked tokens, on average.
    pub masked_tokens: f64,
    /// Operations per image in training, forward and backward.
    pub training_flops: Flops,
    /// Operations per step.
    pub step_flops: f64,
}

/// Length of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct LengthFigures {
    /// Samples per epoch.
    pub samples: u64,
    /// Steps per epoch.
    pub steps_per_epoch: f64,
    /// Steps of the run.
    pub steps: u64,
    /// Epochs of the run.
    pub epochs: f64,
    /// Images per step.
    pub global_batch: usize,
    /// Images per micro-batch.
    pub micro_batch: usize,
    /// Micro-batches per step and rank.
    pub accumulation: usize,
}

/// The run at the pace of the rehearsal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct MeasuredFigures {
    /// Images per second on all ranks together.
    pub images_per_second: f64,
    /// Operations per second on all ranks together.
    pub flops_per_second: f64,
    /// Duration of the run.
    pub eta: Eta,
    /// Checkpoints at this pace.
    pub checkpoints: CheckpointForecast,
}
