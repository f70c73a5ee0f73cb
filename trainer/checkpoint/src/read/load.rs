//! Reading the weights of a checkpoint for other programs.

use std::collections::BTreeMap;

use arinar_store::Store;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::de::DeserializeOwned;
use tch::{Kind, Tensor};

use super::{
    resolve::{newest_valid, steps_of},
    resume_place::ResumePlace,
    state_file::{damaged, read_state},
};
use crate::{
    error::CheckpointError,
    format::manifest::{self, FileEntry},
    state::DatasetInfo,
};

/// The weights of a checkpoint, and the other facts that sampling needs. `C` is the configuration of the run.
pub struct LoadedRun<C> {
    /// Configuration of the run.
    pub config: C,
    /// Steps trained.
    pub step: u64,
    /// Weights (or their moving averages, see [`load_ema`]) and buffers under the official names.
    pub tensors: BTreeMap<String, Tensor>,
    /// Facts about the dataset.
    pub dataset: DatasetInfo,
    /// Problems of newer checkpoints, for the user.
    pub warnings: Vec<String>,
}

/// Loads the moving averages of the weights from the newest valid checkpoint of a run, or from the checkpoint at a URL.
///
/// # Errors
/// Returns an error if there is no checkpoint, if none is valid, or if the store fails.
pub fn load_ema<C: DeserializeOwned>(url: &str) -> Result<LoadedRun<C>, CheckpointError> {
    load_weights(url, "ema")
}

/// Loads the files of one kind, `model` or `ema`, from the newest valid checkpoint of a run, or from the checkpoint at a
/// URL. Only these files are read and verified.
///
/// # Errors
/// The same as those of [`load_ema`].
pub fn load_weights<C: DeserializeOwned>(url: &str, kind: &str) -> Result<LoadedRun<C>, CheckpointError> {
    let place = ResumePlace::parse(url)?;
    let steps = steps_of(&place)?;
    let resolved = newest_valid(url, steps.into_iter().rev(), |&step| load_step(&place.store, step, kind))?;
    match resolved {
        Some(resolved) => Ok(LoadedRun { warnings: resolved.warnings, ..resolved.value }),
        None => Err(CheckpointError::NoCheckpoint { url: url.to_owned() }),
    }
}

fn load_step<C: DeserializeOwned>(store: &Store, step: u64, kind: &str) -> Result<LoadedRun<C>, CheckpointError> {
    let manifest = manifest::read(store, step)?;
    let state = read_state(store, &manifest, None)?;
    let mut tensors = BTreeMap::new();
    let is_of_kind = |entry: &&FileEntry| entry.name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('-'));
    for entry in manifest.files.iter().filter(is_of_kind) {
        let contents = manifest::read_file(store, step, entry)?;
        for (name, view) in parse(store, step, entry, &contents)?.tensors() {
            let tensor = to_tensor(&view).map_err(|what| damaged(store, step, &entry.name, what))?;
            tensors.insert(name, tensor);
        }
    }
    Ok(LoadedRun { config: state.config, step: state.step, tensors, dataset: state.dataset, warnings: Vec::new() })
}

/// Copies a tensor of a safetensors file.
pub(crate) fn to_tensor(view: &TensorView<'_>) -> Result<Tensor, String> {
    if view.dtype() != Dtype::F32 {
        return Err(format!("a tensor of {:?}, not F32", view.dtype()));
    }
    let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    Tensor::f_from_data_size(view.data(), &shape, Kind::Float).map_err(|error| error.to_string())
}

/// Parses a safetensors file of a checkpoint.
pub(crate) fn parse<'a>(
    store: &Store,
    step: u64,
    entry: &FileEntry,
    contents: &'a [u8],
) -> Result<SafeTensors<'a>, CheckpointError> {
    SafeTensors::deserialize(contents).map_err(|error| damaged(store, step, &entry.name, error.to_string()))
}
