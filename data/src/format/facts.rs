//! The parts of a manifest: facts about the pictures, the VAE and each shard.

use arinar_model::vae::{LoadedVae, VaeConfig};
use serde::{Deserialize, Serialize};

/// Preparation of the pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Side of the square pictures in pixels.
    pub size: u32,
}

/// The VAE that encoded the latents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaeFacts {
    /// Dimensions of the network.
    pub config: VaeConfig,
    /// XXH3-128 of the weights file in hexadecimal; empty if the weights are not known.
    pub xxh3_128: String,
    /// Factor by which latents are multiplied for the outer model.
    pub scale: f64,
    /// Latent channels C.
    pub channels: i64,
    /// Pixels per latent position along one side.
    pub stride: i64,
}

impl VaeFacts {
    /// Returns the facts about `vae`.
    pub fn of(vae: &LoadedVae) -> Self {
        Self {
            config: vae.config.clone(),
            xxh3_128: vae.xxh3.clone(),
            scale: vae.scale,
            channels: vae.config.embed_dim,
            stride: vae.config.stride(),
        }
    }
}

/// A shard file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFacts {
    /// File name in the dataset's folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Number of samples.
    pub count: u64,
    /// XXH3-128 of the file in hexadecimal.
    pub xxh3_128: String,
}
