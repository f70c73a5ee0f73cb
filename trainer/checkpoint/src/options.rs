//! Options of a run's checkpoints.

use std::{fmt, str::FromStr};

use serde_json::Value;

use crate::retention::Retention;

/// The checkpoint to resume from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Resume {
    /// The newest valid checkpoint of the run; start from step 0 if there is none.
    #[default]
    Auto,
    /// Start from step 0; an error if the run already has checkpoints.
    None,
    /// The checkpoint, or the newest valid checkpoint of the run, at this URL. A run that has checkpoints of its own continues
    /// from the newest of them instead.
    From(String),
}

impl FromStr for Resume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "auto" => Self::Auto,
            "none" => Self::None,
            "" => return Err("resume is auto, none, or the path or URL of a checkpoint".to_owned()),
            url => Self::From(url.to_owned()),
        })
    }
}

impl fmt::Display for Resume {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::From(url) => url,
        })
    }
}

/// Location and handling of the checkpoints of a run.
#[derive(Clone, Debug)]
pub struct CheckpointOptions {
    /// URL or path of the run.
    pub run_url: String,
    /// Name of the run, shown to others that find the run in use.
    pub run_name: String,
    /// The checkpoint to resume from.
    pub resume: Resume,
    /// The checkpoints to keep.
    pub retention: Retention,
    /// Parent folder of the spool of a remote run; `None` for the user's cache folder.
    pub spool_dir: Option<String>,
    /// Maximum size of the spool in bytes; `None` for no limit.
    pub spool_limit: Option<u64>,
    /// Maximum upload rate of each rank in bytes per second while training continues; `None` for no limit.
    pub upload_rate: Option<u64>,
    /// The model that a checkpoint must hold.
    pub model: ModelIdentity,
}

/// Describes the model of a run, so that a checkpoint of another model is detected.
#[derive(Clone, Debug, Default)]
pub struct ModelIdentity {
    /// The model section of the configuration.
    pub config: Value,
    /// Dotted keys, beginning with `model.`, whose values may differ between the starts of a run.
    pub variable_keys: &'static [&'static str],
}
