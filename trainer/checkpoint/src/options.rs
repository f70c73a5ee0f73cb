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

/// Words that are meant as an answer, not as the name of a folder.
const NOT_A_PLACE: [&str; 12] = ["auto", "none", "true", "false", "yes", "no", "on", "off", "y", "n", "null", "~"];
const FORMS: &str = "write auto, none, or the path or URL of a run or checkpoint";

impl FromStr for Resume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            text if text.trim().is_empty() => Err(format!("the text is empty; {FORMS}")),
            text if NOT_A_PLACE.iter().any(|word| text.eq_ignore_ascii_case(word)) => {
                Err(format!("{text:?} is none of its values; {FORMS} (./{text} for a folder of this name)"))
            }
            url => Ok(Self::From(url.to_owned())),
        }
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
    /// Whether to acquire the lease of the run, which keeps other runs out.
    pub exclusive: bool,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_not_taken_for_places() {
        assert_eq!("auto".parse(), Ok(Resume::Auto));
        assert_eq!("none".parse(), Ok(Resume::None));
        for place in ["runs/a", "./false", "s3://bucket/none", "nonesuch", "falsehood", "0"] {
            assert_eq!(place.parse(), Ok(Resume::From(place.to_owned())));
        }
        for word in ["", " ", "false", "False", "no", "NO", "null", "~", "true", "off", "None", "AUTO", "n"] {
            let message = word.parse::<Resume>().expect_err(word);
            assert!(message.contains("write auto, none, or the path"), "{message}");
        }
    }
}
