//! The choice of the VAE that decodes the images of a run.

use std::fmt::Display;

use arinar_data::read::Dataset;
use arinar_model::vae::{LoadedVae, load_vae};
use arinar_store::object::LocalCopy;
use tch::Device;

use crate::{config::TrainConfig, stop::Stop};

/// Loads the VAE at `url`, or without one the VAE in the dataset of the run.
///
/// # Errors
/// Returns [`Stop::Configuration`] if there is no such VAE, or if it does not fit the model of the run.
pub(crate) fn load(url: Option<&str>, config: &TrainConfig, device: Device) -> Result<LoadedVae, Stop> {
    let vae = match url {
        Some(url) => load_from(url, device)?,
        None => load_from_dataset(&config.data.url, device)?,
    };
    let (stride, channels) = (vae.config.stride(), vae.config.embed_dim);
    let model = &config.model.vae;
    if stride == model.stride && channels == model.channels {
        return Ok(vae);
    }
    Err(Stop::configuration(format!(
        "the VAE has stride {stride} and {channels} channels, but the run's model needs {} and {}; give another VAE with \
         --vae",
        model.stride, model.channels
    )))
}

fn load_from(url: &str, device: Device) -> Result<LoadedVae, Stop> {
    let copy = LocalCopy::fetch(url).map_err(|error| match error.is_transient() {
        true => Stop::failure(error),
        false => Stop::configuration(error),
    })?;
    load_vae(copy.path(), device).map_err(|error| match copy {
        LocalCopy::InPlace(_) => Stop::configuration(error),
        // The error names the temporary file.
        LocalCopy::Fetched(_) => Stop::configuration(format!("the copy of {url}: {error}")),
    })
}

fn load_from_dataset(url: &str, device: Device) -> Result<LoadedVae, Stop> {
    let with_fix = |error: &dyn Display| Stop::configuration(format!("{error}; or give a VAE with --vae"));
    let dataset = Dataset::open(url).map_err(|error| with_fix(&error))?;
    dataset.vae(device).map_err(|error| with_fix(&error))
}
