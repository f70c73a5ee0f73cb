//! VAE files: one safetensors file with the official parameter names and the configuration in its metadata.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor, nn};

use super::autoencoder::AutoencoderKl;
use super::config::{KL16_SCALE, VaeConfig};
use crate::weights::{self, Section, WeightsError, WeightsFile};

/// Metadata key that holds the [`VaeConfig`] as JSON.
const CONFIG_KEY: &str = "vae_config";
/// Metadata key that holds the latent scale as text.
const SCALE_KEY: &str = "scale";
/// Prefixes of parameters that are only used to train a VAE. The official code ignores them, too.
const TRAINING_ONLY: [&str; 3] = ["loss.", "foundation_model.", "linear_proj."];

/// A frozen VAE loaded from a file.
pub struct LoadedVae {
    /// The autoencoder.
    pub vae: AutoencoderKl,
    /// The sizes of the autoencoder.
    pub config: VaeConfig,
    /// The factor that scales latents to the outer model's tokens.
    pub scale: f64,
    /// The store that owns the parameters.
    pub store: nn::VarStore,
    /// XXH3-128 of the file in hexadecimal. A dataset records it, so that latents are decoded by the VAE that encoded
    /// them.
    pub xxh3: String,
}

/// Loads a VAE from a safetensors file or from the official `kl16.ckpt`. A file without metadata is assumed to be the
/// official KL-16 with scale 0.2325.
///
/// # Errors
/// Returns an error if the file cannot be read or has neither format, if its metadata is invalid, or if its tensors do
/// not match the configuration. The error names the file, the tensors and their shapes.
pub fn load_vae(path: &Path, device: Device) -> Result<LoadedVae, WeightsError> {
    load_vae_bytes(path, &vae_safetensors(path)?, device)
}

/// Returns the contents of a VAE file in safetensors format: unchanged, or converted from the official `kl16.ckpt`.
/// The conversion is deterministic. [`LoadedVae::xxh3`] is the hash of these bytes.
///
/// # Errors
/// See [`load_vae`].
pub fn vae_safetensors(path: &Path) -> Result<Vec<u8>, WeightsError> {
    let file = WeightsFile::open(path)?;
    let Some(pickle) = file.pickle() else { return Ok(file.into_safetensors().unwrap_or_default()) };
    let store = nn::VarStore::new(Device::Cpu);
    AutoencoderKl::new(&store.root(), &VaeConfig::kl16());
    let variables = weights::named(&store);
    weights::fill_selected(path, pickle.tensors(), Section::Weights, &variables, &TRAINING_ONLY)?;
    weights::serialize(path, &variables, &metadata_of(path, &VaeConfig::kl16(), KL16_SCALE)?)
}

/// Loads a VAE from the bytes of a safetensors file; `path` is only used in errors.
///
/// # Errors
/// See [`load_vae`].
pub fn load_vae_bytes(path: &Path, bytes: &[u8], device: Device) -> Result<LoadedVae, WeightsError> {
    let metadata = weights::metadata(path, bytes)?;
    let config = match metadata.get(CONFIG_KEY) {
        Some(json) => parse_config(path, json)?,
        None => VaeConfig::kl16(),
    };
    let scale = match metadata.get(SCALE_KEY) {
        Some(text) => parse_scale(path, text)?,
        None => KL16_SCALE,
    };
    let mut store = nn::VarStore::new(device);
    let vae = AutoencoderKl::new(&store.root(), &config);
    weights::load_bytes(path, bytes, &weights::named(&store), &TRAINING_ONLY)?;
    store.freeze();
    Ok(LoadedVae { vae, config, scale, store, xxh3: format!("{:032x}", xxhash_rust::xxh3::xxh3_128(bytes)) })
}

/// Writes the weights in half precision, with `config`, `scale` and `facts` in the metadata. The file is replaced
/// atomically.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn save_vae(
    path: &Path,
    store: &nn::VarStore,
    config: &VaeConfig,
    scale: f64,
    facts: &[(&str, String)],
) -> Result<(), WeightsError> {
    let tensors: BTreeMap<String, Tensor> =
        weights::named(store).into_iter().map(|(name, tensor)| (name, tensor.detach().to_kind(Kind::Half))).collect();
    let mut metadata = metadata_of(path, config, scale)?;
    metadata.extend(facts.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    weights::save(path, &tensors, &metadata)
}

fn metadata_of(path: &Path, config: &VaeConfig, scale: f64) -> Result<BTreeMap<String, String>, WeightsError> {
    let json = serde_json::to_string(config).map_err(|source| WeightsError::metadata(path, CONFIG_KEY, source))?;
    Ok(BTreeMap::from([(CONFIG_KEY.to_owned(), json), (SCALE_KEY.to_owned(), scale.to_string())]))
}

fn parse_config(path: &Path, json: &str) -> Result<VaeConfig, WeightsError> {
    let config: VaeConfig =
        serde_json::from_str(json).map_err(|source| WeightsError::metadata(path, CONFIG_KEY, source))?;
    config.validate().map_err(|reason| WeightsError::metadata(path, CONFIG_KEY, reason))?;
    Ok(config)
}

fn parse_scale(path: &Path, text: &str) -> Result<f64, WeightsError> {
    match text.parse::<f64>() {
        Ok(scale) if scale.is_finite() && scale > 0.0 => Ok(scale),
        _ => Err(WeightsError::metadata(path, SCALE_KEY, format!("{text:?} is not a positive number"))),
    }
}
