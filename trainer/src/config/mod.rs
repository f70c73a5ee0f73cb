//! The configuration of a run.
//!
//! Every known key is a field here. An unknown key is an error that names the line, the column and the nearest known key.
//! Values can be overridden on the command line (`--set optim.epochs=2`).

mod check;
mod duration;
mod error;
mod keys;
mod lease_mode;
mod load;
mod overrides;
pub(crate) mod places;
mod value_error;
mod values;
mod yaml;

use arinar_collective::device::DeviceChoice;
use arinar_model::{
    Precision,
    config::ModelConfig,
    schedule::{LearningRate, LrSchedule, lr_at},
};
use serde::{Deserialize, Serialize};

pub use arinar_checkpoint::Resume;
pub use arinar_data::read::BatchShare;
pub use error::ConfigError;
pub use lease_mode::LeaseMode;
pub use load::{find, load, parse, read};
pub use values::{ByteSize, Every, LogFormat, NonFinite, Timeout};

/// The configuration of one run. Serializes to the same structure, with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of all random numbers of the run.
    pub seed: u64,
    /// Name and folders of the run.
    pub run: RunConfig,
    /// The model.
    pub model: ModelConfig,
    /// The dataset.
    pub data: DataConfig,
    /// Optimizer and schedule.
    pub optim: OptimConfig,
    /// Batch sizes.
    pub batch: BatchConfig,
    /// Number format of the forward and backward pass.
    #[serde(default)]
    pub precision: Precision,
    /// When to save checkpoints, which to keep, and where to resume.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// Evaluation during training; null for none.
    #[serde(default)]
    pub eval: Option<EvalConfig>,
    /// The training loop.
    #[serde(default)]
    pub train: LoopConfig,
    /// Progress messages.
    #[serde(default)]
    pub log: LogConfig,
}

/// Name and folders of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run in logs.
    pub name: String,
    /// Store URL or path of the checkpoints. Event files of a remote run are uploaded to its subfolder `logs/`.
    pub dir: String,
    /// Local folder of the TensorBoard event files.
    pub log_dir: String,
    /// `auto` to keep a second run out of `dir`; `none` for a store without conditional puts or a file system without locks,
    /// where you must make sure that only one run writes to `dir`: a second one would damage the checkpoints.
    #[serde(default)]
    pub lease: LeaseMode,
}

/// The dataset and its cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Store URL or path of a dataset made by `arinar-data encode`; or `synthetic:N` for N random samples, to try a machine
    /// without a dataset.
    pub url: String,
    /// Folder for shards downloaded from a remote store; null for the user's cache folder.
    #[serde(default)]
    pub cache_dir: Option<String>,
    /// Maximum size of the cache folder, shared by all datasets and jobs; null for no limit.
    #[serde(default)]
    pub cache_limit: Option<ByteSize>,
    /// Number of shards that are shuffled together; 0 for all; null for as many as the cache allows, or, when resuming, for
    /// the number that the run started with.
    #[serde(default)]
    pub shuffle_window: Option<u64>,
    /// Number of batches to read ahead.
    #[serde(default = "default_look_ahead")]
    pub look_ahead: usize,
}

/// AdamW, its learning rate and the moving averages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimConfig {
    /// Learning rate at a global batch of 256. The rate used is proportional to the global batch.
    pub lr_per_256: f64,
    /// Decay rates of AdamW's moments.
    pub betas: [f64; 2],
    /// Term added to AdamW's denominator.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Decoupled weight decay. Biases, other one-dimensional parameters and the head have none.
    pub weight_decay: f64,
    /// Maximum gradient norm.
    pub grad_clip: f64,
    /// Decay rate of the moving averages.
    pub ema: f64,
    /// Learning rate schedule after warm-up.
    pub schedule: LrSchedule,
    /// Length of the linear warm-up.
    pub warmup_epochs: f64,
    /// Length of the training.
    pub epochs: f64,
}

/// Batch sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Number of samples per step on all ranks.
    pub global: usize,
    /// Maximum number of samples that a rank passes through the model at once; null for its whole share of the global batch.
    /// Gradients are accumulated over the micro-batches.
    #[serde(default)]
    pub micro: Option<usize>,
}

/// Checkpoints of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Interval between checkpoints: a duration ("30min") or a number of steps ("100 steps"). The end of training is always
    /// saved.
    pub every: Every,
    /// Number of newest checkpoints to keep.
    pub keep_last: usize,
    /// Interval in epochs of the checkpoints to keep permanently; null for none.
    pub keep_every_epochs: Option<f64>,
    /// Checkpoint to resume from: `auto`, `none`, or the URL of a run or of a checkpoint with which a new run begins. Once
    /// `run.dir` or its spool holds a checkpoint, training continues from the newest one there, as with `auto`.
    #[serde(with = "values::text")]
    pub resume: Resume,
    /// Local folder for checkpoints that wait for upload to a remote `run.dir`, with a subfolder per run; null for a folder
    /// in the user's cache folder.
    pub spool_dir: Option<String>,
    /// Maximum size of the checkpoints that wait for upload; null for no limit.
    pub spool_limit: Option<ByteSize>,
    /// Maximum upload rate of each rank in bytes per second, so that uploads do not slow training; null for no limit. The
    /// limit is lifted at the end of a run.
    pub upload_rate: Option<ByteSize>,
    /// How long the end of a run waits for uploads.
    pub upload_timeout: Timeout,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every: Every::default(),
            keep_last: 3,
            keep_every_epochs: None,
            resume: Resume::Auto,
            spool_dir: None,
            spool_limit: None,
            upload_rate: Some(ByteSize(16_000_000)),
            upload_timeout: Timeout(std::time::Duration::from_secs(600)),
        }
    }
}

/// Evaluation during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Interval between evaluations in epochs.
    pub every_epochs: f64,
    /// Number of images to sample.
    pub num_images: u64,
    /// Guidance scale of these images.
    pub guidance_scale: f64,
}

/// The training loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoopConfig {
    /// Total number of steps, if it is less than `optim.epochs`; null for no limit.
    pub max_steps: Option<u64>,
    /// `auto` for GPUs if there are any, `cpu`, or `cuda`.
    pub device: DeviceChoice,
    /// Number of libtorch threads per rank; null to divide the cores of the node among its ranks.
    pub threads: Option<usize>,
    /// The response to a loss or gradient that is not finite.
    pub non_finite: NonFinite,
    /// Maximum number of consecutive steps that may be skipped with `non_finite: skip`.
    pub max_skips: u64,
}

impl Default for LoopConfig {
    fn default() -> Self {
        Self { max_steps: None, device: DeviceChoice::Auto, threads: None, non_finite: NonFinite::Stop, max_skips: 10 }
    }
}

/// Progress messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Interval between progress lines, unless a progress bar is shown on a terminal.
    pub every: Every,
    /// Format: `text` or `json`.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { every: Every::Time(std::time::Duration::from_secs(10)), format: LogFormat::Text }
    }
}

impl TrainConfig {
    /// Returns the learning rate after warm-up, which is proportional to the global batch.
    pub fn peak_learning_rate(&self) -> f64 {
        self.optim.lr_per_256 * self.batch.global as f64 / 256.0
    }

    /// Returns the learning rate at a fractional epoch.
    pub fn learning_rate(&self, epoch: f64) -> f64 {
        let optim = &self.optim;
        let rate = LearningRate {
            schedule: optim.schedule,
            peak: self.peak_learning_rate(),
            floor: 0.0,
            warmup_epochs: optim.warmup_epochs,
            epochs: optim.epochs,
        };
        lr_at(&rate, epoch)
    }
}

fn default_look_ahead() -> usize {
    4
}

fn default_eps() -> f64 {
    1e-8
}
