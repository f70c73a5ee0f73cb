//! The VAE that lies beside a dataset's shards: whoever has the latents can decode them.

use std::path::Path;

use arinar_model::vae::{LoadedVae, load_vae_bytes};
use arinar_model::weights::WeightsError;
use tch::Device;
use thiserror::Error;

use crate::read::dataset::Dataset;
use arinar_store::{Store, StoreError};

/// Name of the weights in the dataset's folder.
pub const TOKENIZER_NAME: &str = "vae.safetensors";

/// Why a dataset's VAE cannot be used.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// It cannot be fetched.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is no VAE.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// It is not the one that made the latents.
    #[error("{url} is not the VAE that encoded this dataset (XXH3 {found}, the manifest says {expected})")]
    Other {
        /// Where it lies.
        url: String,
        /// Hash of the file.
        found: String,
        /// Hash in the manifest.
        expected: String,
    },
}

/// Puts the VAE's weights, a safetensors file, beside the shards; call it before the manifest is written.
///
/// # Errors
/// When the store refuses.
pub(crate) fn keep(store: &Store, weights: Vec<u8>) -> Result<(), StoreError> {
    store.put(TOKENIZER_NAME, weights)
}

impl Dataset {
    /// The VAE that made the latents.
    ///
    /// # Errors
    /// When it is not there, damaged, or another one.
    pub fn vae(&self, device: Device) -> Result<LoadedVae, TokenizerError> {
        let url = self.store().url_of(TOKENIZER_NAME);
        let bytes = self.store().get(TOKENIZER_NAME)?;
        let vae = load_vae_bytes(Path::new(&url), &bytes, device)?;
        let expected = &self.manifest.vae.xxh3_128;
        if vae.xxh3 == *expected {
            return Ok(vae);
        }
        Err(TokenizerError::Other { url, found: vae.xxh3, expected: expected.clone() })
    }
}
