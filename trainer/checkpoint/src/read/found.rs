//! The checkpoint to resume from.

use serde::{Deserialize, Serialize};

/// A valid checkpoint to resume from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundCheckpoint {
    /// URL of the run it belongs to, as given by the user.
    pub run: String,
    /// Step of the checkpoint.
    pub step: u64,
    /// The location of its files.
    pub location: Location,
    /// Problems of newer checkpoints, for the user.
    pub warnings: Vec<String>,
    /// True if it is a checkpoint of the run itself, false if the run begins from another one.
    pub is_own: bool,
    /// The place that `resume` names and that is not read, because the run itself has gone further.
    pub unread: Option<String>,
}

/// The local folder that holds the files of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Location {
    /// The folder of the run.
    Run,
    /// The spool, to which the checkpoint was saved.
    Spool,
    /// The spool, to which the checkpoint was downloaded.
    Downloaded,
}
