//! The VAE stored beside a dataset's shards, which decodes the latents.

use std::path::Path;

use arinar_model::vae::{LoadedVae, load_vae_bytes};
use arinar_model::weights::WeightsError;
use arinar_store::StoreError;
use tch::Device;
use thiserror::Error;

use crate::format::names::TOKENIZER_NAME;
use crate::read::dataset::Dataset;

/// Reason why the VAE of a dataset cannot be used.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The weights cannot be read from the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file does not contain the weights of a VAE.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The weights are not those that encoded the latents.
    #[error("{url} is not the VAE that encoded this dataset (XXH3 {found}, the manifest says {expected})")]
    Other {
        /// URL of the file.
        url: String,
        /// Hash of the file.
        found: String,
        /// Hash in the manifest.
        expected: String,
    },
}

impl Dataset {
    /// Loads the VAE that encoded the latents.
    ///
    /// # Errors
    /// Returns an error if the file is missing or damaged, or if it contains another VAE.
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
