//! Exporting the weights of a run as one safetensors file under the official names, for other programs.

use std::collections::BTreeMap;
use std::path::Path;

use arinar_data::Reporter;
use arinar_model::weights;
use arinar_place::{Place, of_option};
use arinar_store::{Store, local_folder::check_writable, object::open_object};

use arinar_checkpoint::{load_weights, step_folder_name};

use crate::{config::TrainConfig, stop::Stop};

/// Metadata keys that distinguish an export from other files.
const EXPORT_KEYS: [&str; 2] = ["weights", "model_config"];
/// Maximum length of the header of an export in bytes.
const MAX_HEADER: u64 = 16 << 20;

/// The weights to export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Weights {
    /// The moving averages, which sampling uses
    #[default]
    Ema,
    /// The weights as they are trained
    Model,
}

impl Weights {
    /// Returns the name, which is also the prefix of the checkpoint's files.
    fn name(self) -> &'static str {
        match self {
            Self::Ema => "ema",
            Self::Model => "model",
        }
    }
}

/// An export of weights.
#[derive(Clone, Debug)]
pub struct Export {
    /// Path or store URL of the file to write.
    pub file: String,
    /// Store URL of the run, or of one of its checkpoints.
    pub run: String,
    /// The weights to export.
    pub weights: Weights,
    /// Step of the checkpoint; `None` for the newest valid one.
    pub step: Option<u64>,
}

impl Export {
    /// Writes the file atomically, and returns a description of its contents. Replaces an earlier export of the same name.
    ///
    /// # Errors
    /// Returns an error if a file of the same name is not an export, if there is no valid checkpoint, or if a store fails.
    pub fn write(&self) -> Result<String, Stop> {
        of_option("--run", Place::parse(&self.run)).map_err(Stop::configuration)?;
        of_option("--export", Place::parse(&self.file)).map_err(Stop::configuration)?;
        let url = match self.step {
            Some(step) => format!("{}/{}", self.run.trim_end_matches('/'), step_folder_name(step)),
            None => self.run.clone(),
        };
        let (store, name) = open_object(&self.file).map_err(Stop::configuration)?;
        if let Some(path) = store.local_path("") {
            let problem = match check_writable(&path) {
                Err(problem) => Some(problem.to_string()),
                Ok(_) => path.join(&name).is_dir().then(|| "it is a folder".to_owned()),
            };
            if let Some(problem) = problem {
                return Err(Stop::configuration(format!("--export {}: {problem}; choose another file", self.file)));
            }
        }
        if !can_be_replaced(&store, &name)? {
            return Err(Stop::configuration(format!(
                "{} exists and is not an export of this program; move it away or choose another name",
                store.url_of(&name)
            )));
        }
        let run = load_weights::<TrainConfig>(&url, self.weights.name())?;
        for warning in &run.warnings {
            Reporter::console().note(&format!("arinar-trainer: warning: {warning}; an older one is exported"));
        }
        let model = serde_json::to_string(&run.config.model).map_err(Stop::failure)?;
        let facts = [
            ("format", "pt".to_owned()),
            ("run", run.config.run.name.clone()),
            ("step", run.step.to_string()),
            ("weights", self.weights.name().to_owned()),
            ("model_config", model),
        ];
        let facts: BTreeMap<String, String> = facts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let bytes = weights::serialize(Path::new(&self.file), &run.tensors, &facts).map_err(Stop::failure)?;
        let (count, length) = (run.tensors.len(), bytes.len());
        store.put(&name, bytes)?;
        let (which, step) = (self.weights.name(), run.step);
        Ok(format!("{}: {which} weights of step {step}, {count} tensors, {length} bytes", store.url_of(&name)))
    }
}

/// Returns whether there is no such file, or one that was written by [`Export::write`].
fn can_be_replaced(store: &Store, name: &str) -> Result<bool, Stop> {
    let Some(bytes) = store.size(name)? else { return Ok(true) };
    let start = store.get_range(name, 0, bytes.min(MAX_HEADER))?;
    let header = weights::header_of(&start);
    let facts = header.as_ref().and_then(|header| header.get("__metadata__"));
    Ok(facts.is_some_and(|facts| EXPORT_KEYS.iter().all(|key| facts.get(key).is_some())))
}
