//! A run's weights as one safetensors file under the official names, for other programs.

use std::collections::BTreeMap;
use std::path::Path;

use arinar_data::object::open_object;
use arinar_model::weights;

use crate::{
    checkpoint::{folder, load_weights},
    exit::Stop,
};

/// Which weights of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// The moving averages, which sampling uses.
    #[default]
    Ema,
    /// The weights as they are trained.
    Model,
}

impl Which {
    /// Also what the checkpoint's files of them begin with.
    fn name(self) -> &'static str {
        match self {
            Self::Ema => "ema",
            Self::Model => "model",
        }
    }
}

/// What to write where.
#[derive(Clone, Debug)]
pub struct Export {
    /// Path or store URL of the file.
    pub file: String,
    /// Store URL of the run, or of one of its checkpoints.
    pub run: String,
    /// Which of its weights.
    pub which: Which,
    /// Of which step; `None` for the newest whole checkpoint.
    pub step: Option<u64>,
}

impl Export {
    /// Writes the file, whole or not at all, and says what it holds.
    ///
    /// # Errors
    /// No such checkpoint, a damaged one, or a store failure.
    pub fn write(&self) -> Result<String, Stop> {
        let place = match self.step {
            Some(step) => format!("{}/{}", self.run.trim_end_matches('/'), folder(step)),
            None => self.run.clone(),
        };
        let (store, name) = open_object(&self.file).map_err(Stop::configuration)?;
        let run = load_weights(&place, self.which.name())?;
        for warning in &run.warnings {
            eprintln!("arinar-trainer: warning: {warning}; an older one is exported");
        }
        let model = serde_json::to_string(&run.config.model).map_err(Stop::failure)?;
        let facts = [
            ("format", "pt".to_owned()),
            ("run", run.config.run.name.clone()),
            ("step", run.step.to_string()),
            ("weights", self.which.name().to_owned()),
            ("model_config", model),
        ];
        let facts: BTreeMap<String, String> = facts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let bytes = weights::serialize(Path::new(&self.file), &run.tensors, &facts).map_err(Stop::failure)?;
        let (count, length) = (run.tensors.len(), bytes.len());
        store.put(&name, bytes).map_err(Stop::failure)?;
        let (which, step) = (self.which.name(), run.step);
        Ok(format!("{}: {which} weights of step {step}, {count} tensors, {length} bytes", store.url_of(&name)))
    }
}
