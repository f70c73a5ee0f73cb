//! The contents of `state.json`.

use arinar_data::read::ResumeToken;
use arinar_protocol::Seconds;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything in a checkpoint that is not a tensor. `C` is the configuration of the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointState<C> {
    /// [`FORMAT_VERSION`](crate::FORMAT_VERSION).
    pub format_version: u32,
    /// Name and version of the program that wrote the checkpoint.
    pub program: String,
    /// Steps trained, including skipped ones.
    pub step: u64,
    /// Steps of the optimizer.
    pub optimizer_steps: i64,
    /// Epochs trained.
    pub epoch: f64,
    /// Position in the data.
    pub token: ResumeToken,
    /// World size of the run that wrote the checkpoint.
    pub world: usize,
    /// The configuration.
    pub config: C,
    /// Facts about the dataset that sampling needs.
    pub dataset: DatasetInfo,
    /// Consecutive steps that were skipped up to this one, because their losses or gradients were not finite.
    #[serde(default)]
    pub skipped_steps: u64,
    /// Time spent by rank 0 up to this checkpoint.
    #[serde(default)]
    pub seconds: Seconds,
}

/// Facts about the dataset, so that sampling does not need the dataset itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// Identity of the dataset.
    pub id: String,
    /// Samples per epoch.
    pub samples: u64,
    /// Class names by label; empty if unknown.
    pub class_names: Vec<String>,
    /// The VAE section of the manifest; null if unknown.
    pub vae: Value,
}
