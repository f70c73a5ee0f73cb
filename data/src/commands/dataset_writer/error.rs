//! Errors of writing a dataset.

use arinar_model::weights::WeightsError;
use thiserror::Error;

use crate::commands::convert::error::ConvertError;
use crate::error::DataError;
use crate::sources::SourceError;
use arinar_store::StoreError;
use arinar_store::lease::LeaseError;
use arinar_store::local_folder::FolderError;

/// Reason why a dataset could not be written.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// The inputs cannot be listed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The VAE's weights cannot be loaded.
    #[error(transparent)]
    Vae(#[from] WeightsError),
    /// The requested device cannot be used.
    #[error(transparent)]
    Device(#[from] arinar_collective::device::DeviceError),
    /// The store reported an error.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The lease could not be acquired or was lost.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The manifest cannot be read or written.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The files to convert cannot be used.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The picture size is not a multiple of the VAE's stride.
    #[error("--image-size {size} is not a positive multiple of the VAE's stride {stride}; use {suggestion}")]
    ImageSize {
        /// Size that was given.
        size: u32,
        /// Pixels per latent position.
        stride: i64,
        /// Nearest size that is a multiple.
        suggestion: i64,
    },
    /// The folder contains a dataset with other pictures or settings.
    #[error("{url} already holds a dataset of other pictures or settings; choose another --out or pass --overwrite")]
    OtherDataset {
        /// URL of the folder.
        url: String,
    },
    /// The folder contains a dataset whose pictures have changed since.
    #[error(
        "{url} already holds a dataset of other pictures: {why}; choose another --out, or pass --overwrite to make it anew"
    )]
    ChangedPictures {
        /// URL of the folder.
        url: String,
        /// Description of the first difference.
        why: String,
    },
    /// The folder contains a shard of another unfinished run.
    #[error(
        "{url} was made by an encode run with other pictures or settings; \
         repeat that run's options, choose another --out or pass --overwrite"
    )]
    ForeignShard {
        /// URL of the shard.
        url: String,
    },
    /// A foreign file has the name of a file of the dataset.
    #[error("{url} exists and is not {what} that this program has made; move it away or choose another --out")]
    ForeignFile {
        /// URL of the file.
        url: String,
        /// Kind of file that may be replaced there.
        what: &'static str,
    },
    /// The folder at `--out` cannot be written to.
    #[error("--out {out}: {source}; choose another --out")]
    Out {
        /// Value of `--out`.
        out: String,
        /// Reason why the folder cannot be used.
        source: FolderError,
    },
    /// The VAE's output cannot be represented in half precision.
    #[error("the VAE gives moments for {name} that are not finite in half precision; check the weights given as --vae")]
    NotFinite {
        /// Name of the picture.
        name: String,
    },
    /// A shard file cannot be serialized.
    #[error("cannot serialize a shard: {0}")]
    Shard(#[from] safetensors::SafeTensorError),
    /// libtorch reported an error.
    #[error("encoding failed: {0}")]
    Tensor(#[from] tch::TchError),
    /// A thread that decodes pictures panicked.
    #[error("a picture decoder stopped unexpectedly")]
    DecoderPanic,
    /// Some pictures cannot be used.
    #[error("{0}")]
    BadPictures(String),
    /// One or more ranks failed.
    #[error("{message}")]
    Ranks {
        /// Messages of the ranks that failed.
        message: String,
        /// Whether the remedy is a changed command line.
        configuration: bool,
    },
}

impl EncodeError {
    /// Whether the remedy is a changed command line (exit code 78) rather than a repair (exit code 1).
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Source(_) | Self::Convert(_) | Self::Vae(_) | Self::Device(_) | Self::ImageSize { .. } => true,
            Self::OtherDataset { .. }
            | Self::ChangedPictures { .. }
            | Self::ForeignShard { .. }
            | Self::ForeignFile { .. } => true,
            Self::Out { source, .. } => !source.is_full_disk(),
            Self::Lease(error) => error.is_configuration(),
            Self::Store(error) => error.is_configuration(),
            Self::Data(error) => error.is_configuration(),
            Self::Ranks { configuration, .. } => *configuration,
            _ => false,
        }
    }
}
