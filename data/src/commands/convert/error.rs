//! Errors of the folder to convert.

use std::path::PathBuf;

use thiserror::Error;

use super::npz::NpzError;

/// Reason why a folder of cached latents cannot be converted.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// The folder cannot be listed.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Path of the folder.
        path: PathBuf,
        /// Error reported by the system.
        source: std::io::Error,
    },
    /// There is no .npz file in any class folder.
    #[error("no .npz files in class folders below {}; main_cache.py of LTH14/mar writes them", path.display())]
    Empty {
        /// Path of the folder.
        path: PathBuf,
    },
    /// None of the files can be read, so that the shape of the latents is unknown.
    #[error("none of the .npz files below {} can be used; the first, {name}: {reason}", path.display())]
    NoneGood {
        /// Path of the folder.
        path: PathBuf,
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
