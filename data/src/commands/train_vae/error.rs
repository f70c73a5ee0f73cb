//! Errors of `arinar-data train-vae`.

use std::path::PathBuf;

use arinar_model::weights::WeightsError;
use arinar_store::local_folder::FolderError;
use thiserror::Error;

use crate::pictures::decode::DecodeError;
use crate::sources::{ReadError, SourceError};

/// Reason why a VAE could not be trained.
#[derive(Debug, Error)]
pub enum TrainVaeError {
    /// An option is out of range.
    #[error("{0}")]
    Option(String),
    /// The pictures cannot be listed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A listed picture cannot be read.
    #[error("{name} {source}")]
    Read {
        /// Name of the picture.
        name: String,
        /// Description of the problem.
        source: ReadError,
    },
    /// A picture cannot be decoded.
    #[error("{name}: {source}")]
    Picture {
        /// Name of the picture.
        name: String,
        /// Description of the problem.
        source: DecodeError,
    },
    /// The folder of the output cannot be written to.
    #[error("--out {}: {source}; choose another --out", out.display())]
    Folder {
        /// Value of `--out`.
        out: PathBuf,
        /// Reason why the folder cannot be used.
        source: FolderError,
    },
    /// Another file has the name of the output.
    #[error(
        "{} exists and is not a VAE that this program has made; move it away or choose another --out", out.display()
    )]
    Foreign {
        /// Value of `--out`.
        out: PathBuf,
    },
    /// An existing file with the name of the output cannot be read.
    #[error("--out {}: {source}; choose another --out", out.display())]
    Unreadable {
        /// Value of `--out`.
        out: PathBuf,
        /// Error reported by the system.
        source: std::io::Error,
    },
    /// The loss is not finite.
    #[error("the loss became {loss} at step {step}; try a smaller --learning-rate")]
    NotFinite {
        /// The loss.
        loss: f64,
        /// The step.
        step: u64,
    },
    /// The weights cannot be written.
    #[error("saving the VAE: {0}")]
    Save(#[from] WeightsError),
    /// libtorch reported an error.
    #[error("training failed: {0}")]
    Tensor(#[from] tch::TchError),
}

impl TrainVaeError {
    /// Whether the remedy is a changed command line or another file (exit code 78).
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Option(_) | Self::Source(_) | Self::Foreign { .. } | Self::Unreadable { .. } => true,
            Self::Folder { source, .. } => !source.is_full_disk(),
            Self::Read { .. } | Self::Picture { .. } | Self::NotFinite { .. } | Self::Save(_) | Self::Tensor(_) => {
                false
            }
        }
    }
}
