//! Where batches come from: an encoded dataset, or seeded noise of the right shape.

use std::sync::Arc;

pub use arinar_data::read::{BatchSource, synthetic_samples};
use arinar_data::{
    DataError, Reporter,
    format::Manifest,
    read::{
        BatchLayout, Dataset, Loader, LoaderConfig, Position, ResumeToken, SyntheticConfig, SyntheticSource,
        cache::CacheConfig, synthetic_id,
    },
};
use arinar_model::config::ModelConfig;

use crate::{
    checkpoint::DatasetFacts,
    collective::Launch,
    config::{BatchShare, TrainConfig},
    exit::Stop,
};

/// What `data.url` names.
pub enum Data {
    /// A dataset made by `arinar-data encode`.
    Encoded(Arc<Dataset>),
    /// That many samples of seeded noise.
    Synthetic(u64),
}

/// One rank's place in a step.
#[derive(Clone, Copy, Debug)]
pub struct RankShare {
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Its part of a global batch.
    pub batch: BatchShare,
}

impl Data {
    /// Opens the dataset of a configuration and checks that the model fits it.
    ///
    /// # Errors
    /// [`Stop::Configuration`] for a missing dataset or a model that does not fit, with the cure.
    pub fn open(config: &TrainConfig) -> Result<Self, Stop> {
        if let Some(samples) = synthetic_samples(&config.data.url) {
            return samples.map(Self::Synthetic).map_err(data_error);
        }
        let cache = CacheConfig {
            folder: config.data.cache_dir.as_ref().map(std::path::PathBuf::from),
            limit: config.data.cache_limit.map(|limit| limit.0),
        };
        let dataset = Dataset::open_with_cache(&config.data.url, cache, Reporter::console()).map_err(data_error)?;
        if let Some(problem) = misfits(&dataset.manifest, dataset.store().url(), &config.model).into_iter().next() {
            return Err(Stop::Configuration(problem));
        }
        Ok(Self::Encoded(Arc::new(dataset)))
    }

    /// Samples of an epoch.
    pub fn samples(&self) -> u64 {
        match self {
            Self::Encoded(dataset) => dataset.len() as u64,
            Self::Synthetic(samples) => *samples,
        }
    }

    /// What checkpoints remember about it.
    pub fn facts(&self) -> DatasetFacts {
        let (id, class_names, vae) = match self {
            Self::Encoded(dataset) => (
                dataset.id().to_owned(),
                dataset.manifest.classes.clone(),
                serde_json::to_value(&dataset.manifest.vae).unwrap_or_default(),
            ),
            Self::Synthetic(samples) => (synthetic_id(*samples), Vec::new(), Default::default()),
        };
        DatasetFacts { id, samples: self.samples(), class_names, vae }
    }

    /// Starts reading one rank's batches, from the beginning or where a checkpoint left off.
    ///
    /// # Errors
    /// [`Stop::Configuration`] when the checkpoint's data are not these.
    pub fn batches(
        &self,
        config: &TrainConfig,
        share: RankShare,
        token: Option<&ResumeToken>,
    ) -> Result<Box<dyn BatchSource>, Stop> {
        let global_batch = config.batch.global;
        match self {
            Self::Encoded(dataset) => {
                // A run keeps its order: on a machine with another cache too.
                let wanted = config.data.shuffle_window.or(token.map(|token| token.window));
                let window = dataset.shuffle_window(wanted).map_err(data_error)?;
                let start = match token {
                    Some(token) => {
                        token.check(&dataset.manifest, config.seed, global_batch, window).map_err(data_error)?
                    }
                    None => Position::default(),
                };
                let loader = LoaderConfig {
                    seed: config.seed,
                    global_batch,
                    rank: share.rank,
                    world_size: share.world,
                    micro_batch: share.batch.micro,
                    look_ahead: config.data.look_ahead,
                    window,
                    prefetch: Launch::from_environment().is_none_or(|launch| launch.local_rank == 0),
                };
                let loader = Loader::new(dataset.clone(), loader, start).map_err(data_error)?;
                Ok(Box::new(loader))
            }
            Self::Synthetic(samples) => {
                let layout = BatchLayout::new(global_batch, share.rank, share.world, share.batch.micro);
                let grid = config.model.grid();
                let synthetic = SyntheticConfig {
                    seed: config.seed,
                    samples: *samples,
                    classes: config.model.classes as u64,
                    shape: [config.model.vae.channels, grid, grid],
                    layout: layout.map_err(data_error)?,
                };
                Ok(Box::new(match token {
                    Some(token) => SyntheticSource::resume(synthetic, token).map_err(data_error)?,
                    None => SyntheticSource::new(synthetic),
                }))
            }
        }
    }
}

/// A data error as the end of the run: the user's to cure, or not.
pub fn data_error(error: DataError) -> Stop {
    if error.is_configuration() { Stop::configuration(error) } else { Stop::failure(error) }
}

/// Every fact of the dataset at `url` that contradicts the model, each with the cure.
pub fn misfits(manifest: &Manifest, url: &str, model: &ModelConfig) -> Vec<String> {
    let classes = manifest.classes.len() as i64;
    let facts = [
        ("model.image_size", i64::from(manifest.image.size) as f64, model.image_size as f64),
        ("model.vae.stride", manifest.vae.stride as f64, model.vae.stride as f64),
        ("model.vae.channels", manifest.vae.channels as f64, model.vae.channels as f64),
        ("model.vae.scale", manifest.vae.scale, model.vae.scale),
        ("model.classes", classes as f64, model.classes as f64),
    ];
    let differ = facts.into_iter().filter(|&(key, data, ours)| {
        let unknown = key == "model.classes" && classes == 0;
        (data - ours).abs() > 1e-6 * data.abs() && !unknown
    });
    differ
        .map(|(key, data, ours)| {
            format!(
                "{key} is {ours} but the dataset {url} was encoded with {data}; set {key}={data} or another data.url"
            )
        })
        .collect()
}
