//! What can go wrong while a dataset is made.

use arinar_model::weights::WeightsError;
use thiserror::Error;

use crate::commands::convert::ConvertError;
use crate::error::DataError;
use crate::pictures::image_source::SourceError;
use arinar_store::StoreError;
use arinar_store::lease::LeaseError;

/// Why no dataset could be made.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// The inputs cannot be listed.
    #[error(transparent)]
    Source(SourceError),
    /// A listed picture cannot be read.
    #[error(transparent)]
    Read(SourceError),
    /// The VAE's weights cannot be loaded.
    #[error(transparent)]
    Vae(#[from] WeightsError),
    /// The machine's GPUs cannot be used.
    #[error(transparent)]
    Device(#[from] arinar_model::device::DeviceError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else is writing there.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The manifest failed.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The files to convert are not what they should be.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The picture size does not suit the VAE.
    #[error("--image-size {size} is not a positive multiple of the VAE's stride {stride}; use {suggestion}")]
    ImageSize {
        /// The size given.
        size: u32,
        /// Pixels per latent position.
        stride: i64,
        /// The nearest size that would do.
        suggestion: i64,
    },
    /// The folder holds a dataset of other pictures or settings.
    #[error("{url} already holds a dataset of other pictures or settings; choose another --out or pass --overwrite")]
    OtherDataset {
        /// URL of the folder.
        url: String,
    },
    /// The folder holds a shard of another unfinished run.
    #[error(
        "{url} was made by an encode run with other pictures or settings; \
         repeat that run's options, choose another --out or pass --overwrite"
    )]
    ForeignShard {
        /// URL of the shard.
        url: String,
    },
    /// A file of something else lies where one of the dataset belongs.
    #[error("{url} exists and is not {what} that this program has made; move it away or choose another --out")]
    ForeignFile {
        /// URL of the file.
        url: String,
        /// The only kind of file that may be replaced there.
        what: &'static str,
    },
    /// The VAE's output cannot be stored.
    #[error("the VAE gives moments for {name} that are not finite in half precision; check the weights given as --vae")]
    NotFinite {
        /// Name of the picture.
        name: String,
    },
    /// A shard file cannot be assembled.
    #[error("assembling a shard failed: {0}")]
    Shard(#[from] safetensors::SafeTensorError),
    /// libtorch failed.
    #[error("encoding failed: {0}")]
    Tensor(#[from] tch::TchError),
    /// The picture decoder panicked; its message was printed.
    #[error("a picture decoder stopped unexpectedly")]
    DecoderPanic,
    /// Some pictures cannot be used.
    #[error("{0}")]
    BadPictures(String),
    /// One or more ranks failed.
    #[error("{message}")]
    Ranks {
        /// What each of them said.
        message: String,
        /// Whether a changed command line is the cure.
        configuration: bool,
    },
}

impl EncodeError {
    /// Whether a changed command line is the cure (exit code 78) rather than a repair (exit code 1).
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Source(_) | Self::Convert(_) | Self::Vae(_) | Self::Device(_) | Self::ImageSize { .. } => true,
            Self::OtherDataset { .. } | Self::ForeignShard { .. } | Self::ForeignFile { .. } => true,
            Self::Lease(LeaseError::Foreign { .. }) => true,
            Self::Store(error) | Self::Lease(LeaseError::Store(error)) => error.is_configuration(),
            Self::Data(error) => error.is_configuration(),
            Self::Ranks { configuration, .. } => *configuration,
            _ => false,
        }
    }
}
