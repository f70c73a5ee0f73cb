//! Finding the newest whole checkpoint and reading it back, at any world size.

use std::collections::BTreeMap;

use arinar_data::store::Store;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::{
    CheckpointError, State,
    manifest::{self, FileEntry, MANIFEST, Manifest, STATE, folder, step_of},
    shard::MOMENTS,
};
use crate::{
    config::{Resume, TrainConfig},
    ema::Ema,
    optimizer::AdamW,
    parameters::{FlatParameters, Part},
};

/// A whole checkpoint to go on from.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Found {
    /// URL of the run it belongs to.
    pub run: String,
    /// Its step.
    pub step: u64,
    /// What was wrong with newer ones, for the user.
    pub warnings: Vec<String>,
}

/// The checkpoint `resume` asks for, or `None` to begin anew. Every file is read and verified.
///
/// # Errors
/// A run that must not be overwritten, a place without checkpoint, none that is whole, or a store
/// failure.
pub fn find(run: &str, resume: &Resume) -> Result<Option<Found>, CheckpointError> {
    match resume {
        Resume::Auto => newest(run),
        Resume::None => refuse_existing(run).map(|()| None),
        Resume::From(place) => Ok(Some(at(place)?)),
    }
}

fn refuse_existing(run: &str) -> Result<(), CheckpointError> {
    let listed = manifest::listed(&Store::open(run)?)?;
    match listed.iter().rfind(|entry| entry.committed) {
        None => Ok(()),
        Some(newest) => Err(CheckpointError::RunExists { url: run.to_owned(), newest: folder(newest.step) }),
    }
}

/// The place is a run, or one checkpoint of a run.
fn at(place: &str) -> Result<Found, CheckpointError> {
    let place = place.trim_end_matches('/');
    let (run, name) = place.rsplit_once('/').unwrap_or((".", place));
    if let Some(step) = step_of(name) {
        let store = Store::open(run)?;
        if !store.exists(&format!("{name}/{MANIFEST}"))? {
            return Err(CheckpointError::NoCheckpoint { url: place.to_owned() });
        }
        verify(&store, step)?;
        return Ok(Found { run: run.to_owned(), step, warnings: Vec::new() });
    }
    newest(place)?.ok_or_else(|| CheckpointError::NoCheckpoint { url: place.to_owned() })
}

fn newest(run: &str) -> Result<Option<Found>, CheckpointError> {
    let store = Store::open(run)?;
    let mut problems = Vec::new();
    for entry in manifest::listed(&store)?.iter().rev().filter(|entry| entry.committed) {
        match verify(&store, entry.step) {
            Ok(()) => {
                let (run, step) = (run.to_owned(), entry.step);
                return Ok(Some(Found { run, step, warnings: problems }));
            }
            Err(problem) => problems.push(problem.to_string()),
        }
    }
    if problems.is_empty() {
        return Ok(None);
    }
    Err(CheckpointError::NoneWhole { url: run.to_owned(), problems: problems.join("; ") })
}

fn verify(store: &Store, step: u64) -> Result<(), CheckpointError> {
    for entry in &manifest::read(store, step)?.files {
        manifest::read_file(store, step, entry)?;
    }
    Ok(())
}

/// What a checkpoint is restored into.
pub struct RestoreInto<'a> {
    /// Weights.
    pub parameters: &'a FlatParameters,
    /// Averages.
    pub ema: &'a Ema,
    /// Moments.
    pub optimizer: &'a mut AdamW,
}

/// Reads a checkpoint into the tensors of a run with this configuration.
///
/// # Errors
/// [`CheckpointError::OtherModel`], or a damaged file.
pub fn restore(found: &Found, config: &TrainConfig, into: RestoreInto<'_>) -> Result<State, CheckpointError> {
    let store = Store::open(&found.run)?;
    let manifest = manifest::read(&store, found.step)?;
    let state = read_state(&store, &manifest, Some(config))?;
    let part = into.optimizer.part().clone();
    let target = |kind, prefix, tensor, part: &Part| Target { kind, prefix, tensor, part: part.clone(), copied: 0 };
    let mut targets = [
        target("model-", "", into.parameters.values(), &into.parameters.whole()),
        target("ema-", "", into.ema.values(), &part),
        target("optimizer-", MOMENTS[0], into.optimizer.first_moment(), &part),
        target("optimizer-", MOMENTS[1], into.optimizer.second_moment(), &part),
    ];
    for entry in &manifest.files {
        if !targets.iter().any(|target| target.takes(entry)) {
            continue;
        }
        let contents = manifest::read_file(&store, found.step, entry)?;
        let tensors = parse(&store, found.step, entry, &contents)?;
        for target in targets.iter_mut().filter(|target| target.takes(entry)) {
            target.copy(into.parameters, &tensors).map_err(|what| damaged(&store, found.step, &entry.name, what))?;
        }
    }
    if let Some(target) = targets.iter().find(|target| target.copied != target.part.slots.len()) {
        let (kind, copied, expected) = (target.kind, target.copied, target.part.slots.len());
        let what = format!("its {kind} files hold {copied} of {expected} parameters");
        return Err(damaged(&store, found.step, MANIFEST, what));
    }
    into.optimizer.set_steps(state.optimizer_steps);
    Ok(state)
}

/// A tensor of parameters, or of a part of them, that a checkpoint's files fill.
struct Target<'a> {
    kind: &'static str,
    prefix: &'static str,
    tensor: &'a Tensor,
    part: Part,
    copied: usize,
}

impl Target<'_> {
    fn takes(&self, entry: &FileEntry) -> bool {
        entry.name.starts_with(self.kind)
    }

    /// Copies every parameter of the part that a file has.
    fn copy(&mut self, parameters: &FlatParameters, tensors: &SafeTensors<'_>) -> Result<(), String> {
        for slot in &parameters.slots()[self.part.slots.clone()] {
            let Ok(view) = tensors.tensor(&format!("{}{}", self.prefix, slot.name)) else { continue };
            let stored = to_tensor(&view)?;
            if stored.size() != slot.shape {
                return Err(format!("{} has shape {:?}, the model wants {:?}", slot.name, stored.size(), slot.shape));
            }
            parameters.view_of_part(self.tensor, &self.part, slot).copy_(&stored);
            self.copied += 1;
        }
        Ok(())
    }
}

fn to_tensor(view: &TensorView<'_>) -> Result<Tensor, String> {
    if view.dtype() != Dtype::F32 {
        return Err(format!("a tensor of {:?}, not F32", view.dtype()));
    }
    let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    Tensor::f_from_data_size(view.data(), &shape, Kind::Float).map_err(|error| error.to_string())
}

fn parse<'a>(
    store: &Store,
    step: u64,
    entry: &FileEntry,
    contents: &'a [u8],
) -> Result<SafeTensors<'a>, CheckpointError> {
    SafeTensors::deserialize(contents).map_err(|error| damaged(store, step, &entry.name, error.to_string()))
}

fn damaged(store: &Store, step: u64, name: &str, what: String) -> CheckpointError {
    CheckpointError::Damaged { url: store.url_of(&format!("{}/{name}", folder(step))), what }
}

/// Reads `state.json`; with a configuration given, its model must be the checkpoint's.
fn read_state(store: &Store, manifest: &Manifest, config: Option<&TrainConfig>) -> Result<State, CheckpointError> {
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

/// As [`load_ema`], from the files of another kind: `model` or `ema`.
///
/// # Errors
/// As [`load_ema`].
pub fn load_weights(run_url: &str, kind: &str) -> Result<LoadedRun, CheckpointError> {
    let found = at(run_url)?;
    let store = Store::open(&found.run)?;
    let manifest = manifest::read(&store, found.step)?;
    let state = read_state(&store, &manifest, None)?;
    let mut tensors = BTreeMap::new();
    for entry in
        manifest.files.iter().filter(|entry| entry.name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('-')))
    {
        let contents = manifest::read_file(&store, found.step, entry)?;
        for (name, view) in parse(&store, found.step, entry, &contents)?.tensors() {
            let tensor = to_tensor(&view).map_err(|what| damaged(&store, found.step, &entry.name, what))?;
            tensors.insert(name, tensor);
        }
    }
    let (config, step, dataset) = (state.config, state.step, state.dataset);
    Ok(LoadedRun { config, step, tensors, dataset, warnings: found.warnings })
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
