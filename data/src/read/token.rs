//! Where in the data a run is: what a checkpoint keeps of the loader.

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::format::manifest::Manifest;
use crate::read::dataset::Dataset;

const TOKEN_VERSION: u32 = 1;

/// A place in the global sequence: samples handed out to all ranks together since the first epoch began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position(pub u64);

/// The loader's part of a checkpoint. Everything that fixes the order of samples is in it and is compared on resume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeToken {
    /// Version of this token.
    pub version: u32,
    /// The dataset.
    pub dataset_id: String,
    /// Seed of the order.
    pub seed: u64,
    /// Epoch of the next unread global batch.
    pub epoch: u64,
    /// Place in that epoch of the batch's first sample.
    pub position: u64,
    /// Shards in a shuffle window; 0 is one global shuffle.
    pub window: u64,
    /// Samples in a global batch.
    pub global_batch: u64,
}

impl ResumeToken {
    pub(crate) fn new(dataset: &Dataset, seed: u64, global_batch: usize, window: u64, position: Position) -> Self {
        let samples = dataset.len() as u64;
        Self {
            version: TOKEN_VERSION,
            dataset_id: dataset.id().to_owned(),
            seed,
            epoch: position.0 / samples,
            position: position.0 % samples,
            window,
            global_batch: global_batch as u64,
        }
    }

    /// The place to go on from, once it is sure that dataset, seed and batch are those of the checkpoint.
    ///
    /// # Errors
    /// [`DataError::Resume`] that names every field that differs.
    pub fn check(
        &self,
        dataset: &Manifest,
        seed: u64,
        global_batch: usize,
        window: u64,
    ) -> Result<Position, DataError> {
        let mut wrong = Vec::new();
        let mut compare = |field: &str, saved: &dyn std::fmt::Display, now: &dyn std::fmt::Display| {
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
        let place = self.epoch.checked_mul(samples).and_then(|place| place.checked_add(self.position));
        match place {
            Some(place) if wrong.is_empty() => return Ok(Position(place)),
            None => wrong.push(format!("epoch {} is beyond all counting", self.epoch)),
            _ => {}
        }
        Err(DataError::Resume(format!("{}; set them as they were, or start a new run", wrong.join("; "))))
    }
}
