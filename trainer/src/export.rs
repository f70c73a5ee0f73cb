//! A run's weights as one safetensors file under the official names, for other programs.

use std::collections::BTreeMap;
use std::path::Path;

use arinar_model::weights;
use arinar_store::{Store, object::open_object};

use crate::{
    checkpoint::{folder, load_weights},
    exit::Stop,
};

/// Metadata keys that an export has and other files do not.
const MARKS: [&str; 2] = ["weights", "model_config"];
/// No header of an export is longer.
const LONGEST_HEADER: u64 = 16 << 20;

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
    /// Writes the file, whole or not at all, and says what it holds. An earlier export of that name is replaced.
    ///
    /// # Errors
    /// A file of that name that is no export, no such checkpoint, a damaged one, or a store failure.
    pub fn write(&self) -> Result<String, Stop> {
        let place = match self.step {
            Some(step) => format!("{}/{}", self.run.trim_end_matches('/'), folder(step)),
            None => self.run.clone(),
        };
        let (store, name) = open_object(&self.file).map_err(Stop::configuration)?;
        if !can_be_replaced(&store, &name)? {
            return Err(Stop::Configuration(format!(
                "{} exists and is not an export of this program; move it away or choose another name",
                store.url_of(&name)
            )));
        }
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

/// Whether there is no such file, or one that [`Export::write`] has written.
fn can_be_replaced(store: &Store, name: &str) -> Result<bool, Stop> {
    let Some(bytes) = store.size(name).map_err(Stop::failure)? else { return Ok(true) };
    let start = store.get_range(name, 0, bytes.min(LONGEST_HEADER)).map_err(Stop::failure)?;
    let header = weights::header_of(&start);
    let facts = header.as_ref().and_then(|header| header.get("__metadata__"));
    Ok(facts.is_some_and(|facts| MARKS.iter().all(|mark| facts.get(mark).is_some())))
}
