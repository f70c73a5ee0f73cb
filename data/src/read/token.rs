//! The position of a run in its data, as checkpoints store it.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::format::manifest::Manifest;

const TOKEN_VERSION: u32 = 1;

/// A position in the global sequence: the number of samples that all ranks together have read since the first epoch
/// began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position(pub u64);

/// The loader's part of a checkpoint. It contains everything that determines the order of samples, and is compared with
/// the configuration on resume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeToken {
    /// Version of this token.
    pub version: u32,
    /// Id of the dataset.
    pub dataset_id: String,
    /// Seed of the order.
    pub seed: u64,
    /// Epoch of the next unread global batch.
    pub epoch: u64,
    /// Index in that epoch of the batch's first sample.
    pub position: u64,
    /// Shards in a shuffle window; 0 stands for a global shuffle.
    pub window: u64,
    /// Samples in a global batch.
    pub global_batch: u64,
}

impl ResumeToken {
    pub(crate) fn new(dataset: &Manifest, seed: u64, global_batch: usize, window: u64, position: Position) -> Self {
        let samples = dataset.num_samples;
        Self {
            version: TOKEN_VERSION,
            dataset_id: dataset.dataset_id.clone(),
            seed,
            epoch: position.0 / samples,
            position: position.0 % samples,
            window,
            global_batch: global_batch as u64,
        }
    }

    /// Returns the position to resume from after comparing dataset, seed and batch with those of the checkpoint.
    ///
    /// # Errors
    /// Returns [`DataError::Resume`], which names every field that differs.
    pub fn check(
        &self,
        dataset: &Manifest,
        seed: u64,
        global_batch: usize,
        window: u64,
    ) -> Result<Position, DataError> {
        let mut wrong = Vec::new();
        let mut compare = |field: &str, saved: &dyn Display, now: &dyn Display| {
            let (saved, now) = (saved.to_string(), now.to_string());
            if saved != now {
                wrong.push(format!("{field} is {saved} in the checkpoint and {now} now"));
            }
        };
        compare("data token version", &self.version, &TOKEN_VERSION);
        compare("dataset id", &self.dataset_id, &dataset.dataset_id);
        compare("seed", &self.seed, &seed);
        compare("data.shuffle_window", &self.window, &window);
        compare("global batch", &self.global_batch, &global_batch);
        let samples = dataset.num_samples;
        if self.dataset_id == dataset.dataset_id && self.position >= samples {
            wrong.push(format!("position {} is beyond the {samples} samples of an epoch", self.position));
        }
        let position = self.epoch.checked_mul(samples).and_then(|start| start.checked_add(self.position));
        match position {
            Some(position) if wrong.is_empty() => return Ok(Position(position)),
            None => wrong.push(format!("epoch {} is out of range", self.epoch)),
            _ => {}
        }
        let remedy = match self.dataset_id == dataset.dataset_id {
            true => "restore the earlier settings or start a new run",
            false => {
                "the dataset at data.url has changed since (other pictures, VAE or settings of encode); \
                 set data.url to the earlier one or start a new run"
            }
        };
        Err(DataError::Resume(format!("{}; {remedy}", wrong.join("; "))))
    }
}
