//! The length of a run in steps.

use crate::config::TrainConfig;

/// The number of steps of a run, and the interval of checkpoints that are kept permanently.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RunLength {
    /// Number of steps.
    pub total_steps: u64,
    /// Samples per epoch.
    pub samples: u64,
    /// Interval of the checkpoints that are kept permanently, in steps.
    pub keep_every_steps: Option<u64>,
}

impl RunLength {
    /// Converts the epochs of a configuration to steps, for a dataset of `samples` samples.
    pub(crate) fn new(config: &TrainConfig, samples: u64) -> Self {
        let steps = |epochs: f64| {
            let steps = epochs * samples as f64 / config.batch.global as f64;
            (steps.ceil() as u64).max(1)
        };
        let max_steps = config.train.max_steps.unwrap_or(u64::MAX);
        Self {
            total_steps: steps(config.optim.epochs).min(max_steps),
            samples,
            keep_every_steps: config.checkpoint.keep_every_epochs.map(steps),
        }
    }

    /// Returns the epochs trained after `step` steps.
    pub(crate) fn epoch(&self, step: u64, global_batch: usize) -> f64 {
        step as f64 * global_batch as f64 / self.samples as f64
    }
}
