//! Errors of the folder to convert.

use thiserror::Error;

use super::npz::NpzError;

/// Reason why a folder of cached latents cannot be converted.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// None of the files can be read, so that the shape of the latents is unknown.
    #[error("none of the {count} .npz files can be used; the first, {name}: {reason}")]
    NoneGood {
        /// Number of files.
        count: usize,
        /// Name of the first file.
        name: String,
        /// Reason why it cannot be used.
        reason: NpzError,
    },
    /// The shape of the latents does not match the VAE.
    #[error(
        "{name} has moments {shape:?}, but {vae} makes [{}, n, n]; give the VAE that made them with --vae", 2 * channels
    )]
    Vae {
        /// Name of the file.
        name: String,
        /// Shape of its moments.
        shape: [usize; 3],
        /// Description of the VAE.
        vae: String,
        /// Latent channels of the VAE.
        channels: i64,
    },
}
