//! Reading the files of a checkpoint: weights for other programs, and the state.

use std::collections::BTreeMap;

use arinar_store::Store;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::{
    CheckpointError, State, find,
    manifest::{self, FileEntry, Manifest, STATE, folder},
};
use crate::config::TrainConfig;

/// What sampling needs of a run.
pub struct LoadedRun {
    /// Configuration of the run, the model's among it.
    pub config: TrainConfig,
    /// Steps trained.
    pub step: u64,
    /// Weights (the averages, where [`load_ema`] read them) and buffers under the official names.
    pub tensors: BTreeMap<String, Tensor>,
    /// What is known of the dataset: class names, facts about the VAE.
    pub dataset: super::DatasetFacts,
    /// What was wrong with newer checkpoints, for the user.
    pub warnings: Vec<String>,
}

/// Loads the EMA weights of a run's newest whole checkpoint, or of the checkpoint a URL names.
///
/// # Errors
/// [`CheckpointError::NoCheckpoint`], none that is whole, or a store failure.
pub fn load_ema(run_url: &str) -> Result<LoadedRun, CheckpointError> {
    load_weights(run_url, "ema")
}

/// As [`load_ema`], from the files of another kind: `model` or `ema`. Only these files are read and verified.
///
/// # Errors
/// As [`load_ema`].
pub fn load_weights(run_url: &str, kind: &str) -> Result<LoadedRun, CheckpointError> {
    let (run, steps) = find::steps_at(run_url)?;
    let store = Store::open(&run)?;
    let mut warnings = Vec::new();
    for step in steps.into_iter().rev() {
        match load_step(&store, step, kind) {
            Ok(loaded) => return Ok(LoadedRun { warnings, ..loaded }),
            Err(problem) if find::is_damage(&problem) => warnings.push(problem.to_string()),
            Err(problem) => return Err(problem),
        }
    }
    if warnings.is_empty() {
        return Err(CheckpointError::NoCheckpoint { url: run_url.to_owned() });
    }
    Err(CheckpointError::NoneWhole { url: run_url.to_owned(), problems: warnings.join("; ") })
}

fn load_step(store: &Store, step: u64, kind: &str) -> Result<LoadedRun, CheckpointError> {
    let manifest = manifest::read(store, step)?;
    let state = read_state(store, &manifest, None)?;
    let mut tensors = BTreeMap::new();
    let of_kind = |entry: &&FileEntry| entry.name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('-'));
    for entry in manifest.files.iter().filter(of_kind) {
        let contents = manifest::read_file(store, step, entry)?;
        for (name, view) in parse(store, step, entry, &contents)?.tensors() {
            let tensor = to_tensor(&view).map_err(|what| damaged(store, step, &entry.name, what))?;
            tensors.insert(name, tensor);
        }
    }
    Ok(LoadedRun { config: state.config, step: state.step, tensors, dataset: state.dataset, warnings: Vec::new() })
}

pub(super) fn to_tensor(view: &TensorView<'_>) -> Result<Tensor, String> {
    if view.dtype() != Dtype::F32 {
        return Err(format!("a tensor of {:?}, not F32", view.dtype()));
    }
    let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    Tensor::f_from_data_size(view.data(), &shape, Kind::Float).map_err(|error| error.to_string())
}

pub(super) fn parse<'a>(
    store: &Store,
    step: u64,
    entry: &FileEntry,
    contents: &'a [u8],
) -> Result<SafeTensors<'a>, CheckpointError> {
    SafeTensors::deserialize(contents).map_err(|error| damaged(store, step, &entry.name, error.to_string()))
}

pub(super) fn damaged(store: &Store, step: u64, name: &str, what: String) -> CheckpointError {
    CheckpointError::Damaged { url: store.url_of(&format!("{}/{name}", folder(step))), what }
}

/// Reads `state.json`; with a configuration given, its model must be the checkpoint's.
pub(super) fn read_state(
    store: &Store,
    manifest: &Manifest,
    config: Option<&TrainConfig>,
) -> Result<State, CheckpointError> {
    let step = manifest.step;
    let fail = |what: String| damaged(store, step, STATE, what);
    let entry = manifest.files.iter().find(|entry| entry.name == STATE);
    let entry = entry.ok_or_else(|| fail("the manifest does not name it".to_owned()))?;
    let contents = manifest::read_file(store, step, entry)?;
    let value: Value = serde_json::from_slice(&contents).map_err(|error| fail(error.to_string()))?;
    if let Some(config) = config {
        let ours = serde_json::to_value(&config.model).map_err(|error| fail(error.to_string()))?;
        if let Some((key, theirs, ours)) = first_difference("model", &value["config"]["model"], &ours) {
            let url = store.url_of(&folder(step));
            return Err(CheckpointError::OtherModel { url, key, theirs, ours });
        }
    }
    serde_json::from_value(value).map_err(|error| fail(error.to_string()))
}

/// What may change from one start of a run to the next without making it another model.
const TRAINING_ONLY: [&str; 3] = ["model.outer.dropout", "model.outer.label_drop", "model.outer.mask_ratio_min"];

/// The first key whose values differ, with both values.
fn first_difference(key: &str, theirs: &Value, ours: &Value) -> Option<(String, String, String)> {
    if let (Value::Object(theirs), Value::Object(ours)) = (theirs, ours) {
        let keys: std::collections::BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
        return keys.into_iter().find_map(|name| {
            let value = |of: &serde_json::Map<String, Value>| of.get(name).cloned().unwrap_or(Value::Null);
            first_difference(&format!("{key}.{name}"), &value(theirs), &value(ours))
        });
    }
    let differs = theirs != ours && !TRAINING_ONLY.contains(&key);
    differs.then(|| (key.to_owned(), theirs.to_string(), ours.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_difference_is_named_with_its_path() {
        let theirs = json!({"outer": {"width": 64, "dropout": 0.1}, "classes": 9});
        let ours = json!({"outer": {"width": 96, "dropout": 0.0}, "classes": 9});
        assert_eq!(
            first_difference("model", &theirs, &ours),
            Some(("model.outer.width".to_owned(), "64".to_owned(), "96".to_owned()))
        );
        assert_eq!(first_difference("model", &theirs, &theirs), None);
    }

    #[test]
    fn dropout_may_change() {
        let theirs = json!({"outer": {"dropout": 0.1}});
        let ours = json!({"outer": {"dropout": 0.0}});
        assert_eq!(first_difference("model", &theirs, &ours), None);
    }
}
