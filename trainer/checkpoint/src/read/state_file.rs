//! Reading `state.json`, and comparing its model with that of the run.

use std::collections::BTreeSet;

use arinar_store::Store;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    error::CheckpointError,
    format::manifest::{self, Manifest, STATE, step_folder_name},
    options::ModelIdentity,
    state::CheckpointState,
};

/// Returns the error of a damaged file.
pub(crate) fn damaged(store: &Store, step: u64, name: &str, what: String) -> CheckpointError {
    CheckpointError::Damaged { url: store.url_of(&format!("{}/{name}", step_folder_name(step))), what }
}

/// Reads the state of a checkpoint. If a model is given, that of the checkpoint must be the same.
///
/// # Errors
/// Returns [`CheckpointError::OtherModel`] if the models differ, or [`CheckpointError::Damaged`].
pub(crate) fn read_state<C: DeserializeOwned>(
    store: &Store,
    manifest: &Manifest,
    model: Option<&ModelIdentity>,
) -> Result<CheckpointState<C>, CheckpointError> {
    let step = manifest.step;
    let fail = |what: String| damaged(store, step, STATE, what);
    let value = read_value(store, manifest)?;
    if let Some(model) = model
        && let Some((key, theirs, ours)) = first_difference("model", &value["config"]["model"], &model.config, model)
    {
        let url = store.url_of(&step_folder_name(step));
        return Err(CheckpointError::OtherModel { url, key, theirs, ours });
    }
    serde_json::from_value(value).map_err(|error| fail(error.to_string()))
}

/// Returns `checkpoint.resume` in the configuration of the run that saved a checkpoint.
///
/// # Errors
/// Returns [`CheckpointError::Damaged`] if the state is damaged, or an error of the store.
pub(crate) fn read_resume(store: &Store, manifest: &Manifest) -> Result<Option<String>, CheckpointError> {
    let state = read_value(store, manifest)?;
    Ok(state.pointer("/config/checkpoint/resume").and_then(Value::as_str).map(str::to_owned))
}

fn read_value(store: &Store, manifest: &Manifest) -> Result<Value, CheckpointError> {
    let fail = |what: String| damaged(store, manifest.step, STATE, what);
    let entry = manifest.files.iter().find(|entry| entry.name == STATE);
    let entry = entry.ok_or_else(|| fail("the manifest does not name it".to_owned()))?;
    let contents = manifest::read_file(store, manifest.step, entry)?;
    serde_json::from_slice(&contents).map_err(|error| fail(error.to_string()))
}

/// Returns the first key whose values differ and must not, with both values.
fn first_difference(
    key: &str,
    theirs: &Value,
    ours: &Value,
    model: &ModelIdentity,
) -> Option<(String, String, String)> {
    if let (Value::Object(theirs), Value::Object(ours)) = (theirs, ours) {
        let keys: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
        return keys.into_iter().find_map(|name| {
            let value = |fields: &Map<String, Value>| fields.get(name).cloned().unwrap_or(Value::Null);
            first_difference(&format!("{key}.{name}"), &value(theirs), &value(ours), model)
        });
    }
    let differs = theirs != ours && !model.variable_keys.contains(&key);
    differs.then(|| (key.to_owned(), theirs.to_string(), ours.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MODEL: ModelIdentity = ModelIdentity { config: Value::Null, variable_keys: &["model.outer.dropout"] };

    #[test]
    fn the_first_difference_is_reported_with_its_path() {
        let theirs = json!({"outer": {"width": 64, "dropout": 0.1}, "classes": 9});
        let ours = json!({"outer": {"width": 96, "dropout": 0.0}, "classes": 9});
        assert_eq!(
            first_difference("model", &theirs, &ours, &MODEL),
            Some(("model.outer.width".to_owned(), "64".to_owned(), "96".to_owned()))
        );
        assert_eq!(first_difference("model", &theirs, &theirs, &MODEL), None);
    }

    #[test]
    fn variable_keys_may_differ() {
        let theirs = json!({"outer": {"dropout": 0.1}});
        let ours = json!({"outer": {"dropout": 0.0}});
        assert_eq!(first_difference("model", &theirs, &ours, &MODEL), None);
    }
}
