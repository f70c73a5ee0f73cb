//! Checkpoints of a training run: a folder `step-00012000/` per checkpoint with the weights, moving averages and moments as
//! safetensors files under the official parameter names, `state.json`, and `manifest.json`, which is written last and makes
//! the folder a checkpoint.
//!
//! - [`CheckpointManager`] is what a training loop uses: it finds the checkpoint to resume from, restores it, and saves new
//!   ones in the background. Begin there.
//! - `format` has the layout of a checkpoint on disk, `read` and `write` work on it.
//! - `remote` is used if the run is in an object store: checkpoints are written to a local spool and uploaded from there.
//! - [`probe`] finds the checkpoint that a run would resume from without changing anything.
//! - [`load_weights`] reads the weights of a checkpoint for other programs.
//!
//! This crate knows tensors and their names, but neither the model nor the configuration of a run: the configuration is a
//! type parameter of [`CheckpointState`].
//!
//! ```
//! use arinar_checkpoint::Retention;
//!
//! // Keep the newest two checkpoints, and one in every 100 steps.
//! let retention = Retention { keep_last: 2, keep_every_steps: Some(100) };
//! assert_eq!(retention.superseded(&[90, 105, 150, 190, 230]), [90, 150]);
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod error;
mod flags;
mod format;
mod layout;
mod manager;
mod options;
mod read;
mod remote;
mod retention;
mod run_store;
mod state;
#[cfg(test)]
mod test_tensors;
mod write;

pub use error::CheckpointError;
pub use flags::CheckpointFlags;
pub use format::manifest::{FORMAT_VERSION, step_folder_name, step_of};
pub use layout::{Part, Slot, TensorSet};
pub use manager::{CheckpointManager, CheckpointPoll, SaveStatus};
pub use options::{CheckpointOptions, ModelIdentity, Resume};
pub use read::{
    found::{FoundCheckpoint, Location},
    load::{LoadedRun, load_ema, load_weights},
    probe::{ResumeCandidate, probe},
};
pub use remote::{outage::UploadStatus, spool::spool_folder};
pub use retention::Retention;
pub use state::{CheckpointState, DatasetInfo};
pub use write::writer::MissingUploads;
