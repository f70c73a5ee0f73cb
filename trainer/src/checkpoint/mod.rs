//! Checkpoints: `step-00012000/` with the weights, averages and moments as safetensors under the
//! official names, `state.json`, and `manifest.json` written last.

mod find;
mod home;
mod load;
mod look;
mod manifest;
mod mirror;
mod parcel;
mod patience;
mod publish;
mod restore;
mod retention;
mod save;
mod shard;
mod snapshot;
mod spool;
mod step_folder;
mod upload;

use std::path::PathBuf;

use arinar_protocol::Seconds;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use arinar_data::read::ResumeToken;
use arinar_store::{StoreError, lease::LeaseError};

use crate::{config::TrainConfig, exit::Stop};

pub use find::{Found, Place};
pub use home::Home;
pub use load::{LoadedRun, load_ema, load_weights};
pub use look::{Outlook, look};
pub use manifest::{FORMAT_VERSION, FileEntry, MANIFEST, Manifest, STATE, folder, step_of};
pub use mirror::UploadStatus;
pub use restore::{RestoreInto, restore};
pub use retention::Retention;
pub use save::{Missing, Role, Saver};
pub use shard::Tensors;
pub use spool::Spool;

/// Everything of a checkpoint that is not a tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// Steps trained, skipped ones included.
    pub step: u64,
    /// Steps the optimizer took.
    pub optimizer_steps: i64,
    /// Epochs trained.
    pub epoch: f64,
    /// Where the data goes on.
    pub token: ResumeToken,
    /// Ranks of the run that wrote it.
    pub world: usize,
    /// The whole configuration.
    pub config: TrainConfig,
    /// What sampling must know about the data.
    pub dataset: DatasetFacts,
    /// Where rank 0's time went up to here.
    #[serde(default)]
    pub seconds: Seconds,
}

/// What a run remembers about its dataset, so that sampling needs no dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetFacts {
    /// Identity.
    pub id: String,
    /// Samples of an epoch.
    pub samples: u64,
    /// Names of the classes, by label; empty where unknown.
    pub class_names: Vec<String>,
    /// The manifest's facts about the VAE; null where unknown.
    pub vae: Value,
}

/// A checkpoint that cannot be written, found or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another run uses the folder, or has taken it over.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A file is not what its manifest says.
    #[error("damaged checkpoint: {url}: {what}")]
    Damaged {
        /// The file.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// The tensors could not be laid out as a file.
    #[error("cannot lay out {file}: {source}")]
    Layout {
        /// The file.
        file: String,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// The run has checkpoints and none of them is whole.
    #[error(
        "none of the checkpoints in {url} is whole ({problems}); move them away to begin anew, or \
         set checkpoint.resume to a whole one"
    )]
    NoneWhole {
        /// The run.
        url: String,
        /// One remark per checkpoint.
        problems: String,
    },
    /// `resume: none` where a run lies already.
    #[error(
        "{url} already holds the checkpoint {newest}; set checkpoint.resume=auto to go on from it, \
         or run.dir to a new folder"
    )]
    RunExists {
        /// The run.
        url: String,
        /// Its newest checkpoint.
        newest: String,
    },
    /// A step's folder of something else, where the run will save that step.
    #[error(
        "{url} is not a checkpoint of this program (it has no manifest or state of one, or is a link), and the run would \
         save its own there; move it away, or set run.dir to another folder"
    )]
    ForeignFolder {
        /// The folder.
        url: String,
    },
    /// Nothing where `resume` points.
    #[error("no checkpoint in {url}; is it the run.dir of a run that has saved one?")]
    NoCheckpoint {
        /// The place.
        url: String,
    },
    /// Weights of another model.
    #[error(
        "the checkpoint {url} is of another model: its {key} is {theirs}, the configuration says \
         {ours}; set {key}={theirs}, or run.dir to a new folder"
    )]
    OtherModel {
        /// The checkpoint.
        url: String,
        /// The first key that differs.
        key: String,
        /// The checkpoint's value.
        theirs: String,
        /// The configuration's value.
        ours: String,
    },
    /// NaN or infinity in the weights.
    #[error("the weights are not finite after step {step}; this state is not saved")]
    NotFinite {
        /// The step.
        step: u64,
    },
    /// No memory for the copy of a file's tensors.
    #[error("no memory for a copy of {file} ({bytes} bytes): {source}")]
    Memory {
        /// The file.
        file: String,
        /// Its length.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// A GPU's memory cannot be copied.
    #[error("no copy of {file}: {source}")]
    Gpu {
        /// The file.
        file: String,
        /// What CUDA said.
        source: crate::cuda::CudaError,
    },
    /// Nowhere to keep checkpoints on their way to a remote store.
    #[error("neither HOME nor XDG_CACHE_HOME is set; set checkpoint.spool_dir to a folder on a local disk")]
    NoCacheFolder,
    /// The spool cannot take another checkpoint.
    #[error("{} has no room: {what}", .path.display())]
    SpoolFull {
        /// The spool.
        path: PathBuf,
        /// What is short.
        what: String,
    },
    /// The same, with all there is to know.
    #[error(
        "{what}; {waits}: nothing saved is lost; make room or raise checkpoint.spool_limit and start again to send it on"
    )]
    NoRoom {
        /// What is short.
        what: String,
        /// What waits in the spool for which store, and why.
        waits: String,
    },
    /// The writing thread ended without a result.
    #[error("the thread writing the checkpoint of step {step} ended unexpectedly")]
    Thread {
        /// The step.
        step: u64,
    },
}

impl From<CheckpointError> for Stop {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::RunExists { .. }
            | CheckpointError::ForeignFolder { .. }
            | CheckpointError::Lease(LeaseError::Foreign { .. })
            | CheckpointError::NoCheckpoint { .. }
            | CheckpointError::OtherModel { .. } => Self::configuration(error),
            _ => Self::failure(error),
        }
    }
}
