//! The experiment file, called a configuration everywhere: strictly parsed.
//!
//! Every key the program knows is a field here; any other key is an error that names the line, the
//! column and the nearest key. Values can be replaced on the command line (`--set optim.epochs=2`).

mod check;
mod error;
mod load;
mod values;

use arinar_model::{
    Precision,
    config::ModelConfig,
    device::DeviceChoice,
    schedule::{LearningRate, LrSchedule, lr_at},
};
use serde::{Deserialize, Serialize};

pub use arinar_data::read::BatchShare;
pub use error::ConfigError;
pub use load::{find, load, parse, read};
pub use values::{ByteSize, Every, LogFormat, NonFinite, Resume, Timeout};

/// One experiment. Serialises back to the same shape, defaults filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Every random number of the run follows from it.
    pub seed: u64,
    /// Where the run lives.
    pub run: RunConfig,
    /// The model.
    pub model: ModelConfig,
    /// The dataset.
    pub data: DataConfig,
    /// Optimizer and schedule.
    pub optim: OptimConfig,
    /// How many samples make a step.
    pub batch: BatchConfig,
    /// Number format of the forward and backward pass.
    #[serde(default)]
    pub precision: Precision,
    /// When to save, what to keep, where to go on.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// Evaluation while training; null for none.
    #[serde(default)]
    pub eval: Option<EvalConfig>,
    /// The loop itself.
    #[serde(default)]
    pub train: LoopConfig,
    /// Progress lines.
    #[serde(default)]
    pub log: LogConfig,
}

/// Name and places of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Shown in logs.
    pub name: String,
    /// Store URL or path of the checkpoints. In a remote store, event files are copied there too, below `logs/`.
    pub dir: String,
    /// Local folder of the TensorBoard event files.
    pub log_dir: String,
}

/// The dataset and its cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Store URL or path of a dataset made by `arinar-data encode`; `synthetic:` or `synthetic:N`
    /// for N seeded random samples, to try a machine out without a dataset.
    pub url: String,
    /// Folder for shards fetched from a remote store; null for the user's cache folder.
    #[serde(default)]
    pub cache_dir: Option<String>,
    /// Most bytes the cache folder may hold, of all datasets and jobs together; null for no limit.
    #[serde(default)]
    pub cache_limit: Option<ByteSize>,
    /// Shards whose samples are shuffled together: 0 for all of them; null for as many as the cache
    /// allows, and on resume for what the run began with.
    #[serde(default)]
    pub shuffle_window: Option<u64>,
    /// Batches read ahead of the step that needs them.
    #[serde(default = "default_look_ahead")]
    pub look_ahead: usize,
}

/// AdamW, its learning rate and the EMA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimConfig {
    /// Learning rate at a global batch of 256; the rate used is proportional to the batch.
    pub lr_per_256: f64,
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Added to AdamW's denominator.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Decoupled weight decay; biases, 1-D parameters and the head have none.
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub grad_clip: f64,
    /// Share of the average kept each step.
    pub ema: f64,
    /// What the rate does after warm-up.
    pub schedule: LrSchedule,
    /// Length of the linear warm-up.
    pub warmup_epochs: f64,
    /// Length of the training.
    pub epochs: f64,
}

/// The batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Samples of one step over all ranks.
    pub global: usize,
    /// Most samples a rank takes through the model at once; null for a rank's whole share. What
    /// does not fit is accumulated.
    #[serde(default)]
    pub micro: Option<usize>,
}

/// Checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// A duration ("30min") or a number of steps ("100 steps"); the end of training always saves.
    pub every: Every,
    /// Newest checkpoints kept.
    pub keep_last: usize,
    /// One checkpoint per this many epochs is kept for ever; null for none.
    pub keep_every_epochs: Option<f64>,
    /// `auto`, `none`, or the URL of a run or of one checkpoint.
    pub resume: Resume,
    /// Local folder in which checkpoints wait to be sent to a remote `run.dir`, in a folder per run; null for one below
    /// the user's cache folder.
    pub spool_dir: Option<String>,
    /// Most bytes that may wait there; null for what the disk holds.
    pub spool_limit: Option<ByteSize>,
    /// Most bytes a second that each rank sends while training goes on, so that the steps do not feel it; null for no
    /// limit. At the end of a run nothing holds it back.
    pub upload_rate: Option<ByteSize>,
    /// How long the end of a run waits for them to be sent.
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

/// Evaluation while training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// How often.
    pub every_epochs: f64,
    /// Images sampled each time.
    pub num_images: u64,
    /// Guidance scale of those images.
    pub guidance_scale: f64,
}

/// The loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoopConfig {
    /// Ends the training after this many steps in all; null for `optim.epochs`.
    pub max_steps: Option<u64>,
    /// `auto` for GPUs where there are any, `cpu`, or `cuda`.
    pub device: DeviceChoice,
    /// libtorch threads of each rank; null for the machine's cores divided by its ranks.
    pub threads: Option<usize>,
    /// What to do when a loss or gradient is not finite.
    pub non_finite: NonFinite,
    /// Under `skip`, how many steps in a row may be skipped before the run stops.
    pub max_skips: u64,
}

impl Default for LoopConfig {
    fn default() -> Self {
        Self { max_steps: None, device: DeviceChoice::Auto, threads: None, non_finite: NonFinite::Stop, max_skips: 10 }
    }
}

/// Progress lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Time between progress lines where there is no terminal for a bar.
    pub every: Every,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { every: Every::Time(std::time::Duration::from_secs(10)), format: LogFormat::Text }
    }
}

impl TrainConfig {
    /// The learning rate after warm-up: proportional to the global batch.
    pub fn peak_learning_rate(&self) -> f64 {
        self.optim.lr_per_256 * self.batch.global as f64 / 256.0
    }

    /// The learning rate at a fractional epoch.
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
