//! The dataset of a run, and the source of a rank's batches.

use std::{path::PathBuf, sync::Arc};

use arinar_checkpoint::DatasetInfo;
use arinar_collective::LaunchEnvironment;
use arinar_data::{
    Reporter,
    format::Manifest,
    read::{
        BatchLayout, BatchSource, Dataset, Loader, LoaderConfig, Position, ResumeToken, SyntheticConfig,
        SyntheticSource, cache::CacheConfig, synthetic_id, synthetic_samples,
    },
};
use arinar_model::config::ModelConfig;

use crate::{
    config::{BatchShare, TrainConfig},
    stop::Stop,
};

/// The dataset that `data.url` refers to.
pub(crate) enum Data {
    /// A dataset that was made by `arinar-data`.
    Encoded(Arc<Dataset>),
    /// A synthetic dataset of this many samples of noise.
    Synthetic(u64),
}

/// One rank's share of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RankShare {
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Its share of the global batch.
    pub batch: BatchShare,
}

impl Data {
    /// Opens the dataset of a configuration and checks that it fits to the model.
    ///
    /// # Errors
    /// Returns [`Stop::Configuration`] if there is no dataset or it does not fit to the model, or another error of the
    /// dataset.
    pub(crate) fn open(config: &TrainConfig) -> Result<Self, Stop> {
        if let Some(samples) = synthetic_samples(&config.data.url) {
            return Ok(Self::Synthetic(samples?));
        }
        let cache = CacheConfig {
            folder: config.data.cache_dir.as_ref().map(PathBuf::from),
            limit: config.data.cache_limit.map(|limit| limit.0),
        };
        let dataset = Dataset::open_with_cache(&config.data.url, cache, Reporter::console())?;
        if let Some(problem) = mismatches(&dataset.manifest, dataset.store().url(), &config.model).into_iter().next() {
            return Err(Stop::configuration(problem));
        }
        Ok(Self::Encoded(Arc::new(dataset)))
    }

    /// Returns the number of samples per epoch.
    pub(crate) fn samples(&self) -> u64 {
        match self {
            Self::Encoded(dataset) => dataset.len() as u64,
            Self::Synthetic(samples) => *samples,
        }
    }

    /// Returns the facts about the dataset that checkpoints hold.
    pub(crate) fn info(&self) -> DatasetInfo {
        let (id, class_names, vae) = match self {
            Self::Encoded(dataset) => (
                dataset.id().to_owned(),
                dataset.manifest.classes.clone(),
                serde_json::to_value(&dataset.manifest.vae).unwrap_or_default(),
            ),
            Self::Synthetic(samples) => (synthetic_id(*samples), Vec::new(), Default::default()),
        };
        DatasetInfo { id, samples: self.samples(), class_names, vae }
    }

    /// Starts reading the batches of one rank, from the beginning or from the position of a checkpoint.
    ///
    /// # Errors
    /// Returns [`Stop::Configuration`] if the checkpoint was trained on other data.
    pub(crate) fn batches(
        &self,
        config: &TrainConfig,
        share: RankShare,
        token: Option<&ResumeToken>,
    ) -> Result<Box<dyn BatchSource>, Stop> {
        match self {
            Self::Encoded(dataset) => Ok(Box::new(loader(dataset, config, share, token)?)),
            Self::Synthetic(samples) => Ok(Box::new(synthetic(*samples, config, share, token)?)),
        }
    }
}

fn loader(
    dataset: &Arc<Dataset>,
    config: &TrainConfig,
    share: RankShare,
    token: Option<&ResumeToken>,
) -> Result<Loader, Stop> {
    // A run keeps its order, even on a machine with another cache.
    let window = dataset.shuffle_window(config.data.shuffle_window.or(token.map(|token| token.window)))?;
    let global_batch = config.batch.global;
    let start = match token {
        Some(token) => token.check(&dataset.manifest, config.seed, global_batch, window)?,
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
        prefetch: LaunchEnvironment::from_environment().is_none_or(|launch| launch.is_node_leader()),
    };
    Ok(Loader::new(Arc::clone(dataset), loader, start)?)
}

fn synthetic(
    samples: u64,
    config: &TrainConfig,
    share: RankShare,
    token: Option<&ResumeToken>,
) -> Result<SyntheticSource, Stop> {
    let grid = config.model.grid();
    let synthetic = SyntheticConfig {
        seed: config.seed,
        samples,
        classes: config.model.classes as u64,
        shape: [config.model.vae.channels, grid, grid],
        layout: BatchLayout::new(config.batch.global, share.rank, share.world, share.batch.micro)?,
    };
    Ok(match token {
        Some(token) => SyntheticSource::resume(synthetic, token)?,
        None => SyntheticSource::new(synthetic),
    })
}

/// Returns every fact of the dataset at `url` that contradicts the model, each with the fix.
pub(crate) fn mismatches(manifest: &Manifest, url: &str, model: &ModelConfig) -> Vec<String> {
    let classes = manifest.classes.len() as i64;
    let facts = [
        ("model.image_size", i64::from(manifest.image.size) as f64, model.image_size as f64),
        ("model.vae.stride", manifest.vae.stride as f64, model.vae.stride as f64),
        ("model.vae.channels", manifest.vae.channels as f64, model.vae.channels as f64),
        ("model.vae.scale", manifest.vae.scale, model.vae.scale),
        ("model.classes", classes as f64, model.classes as f64),
    ];
    let differ = facts.into_iter().filter(|&(key, data, ours)| {
        let is_unknown = key == "model.classes" && classes == 0;
        (data - ours).abs() > 1e-6 * data.abs() && !is_unknown
    });
    differ
        .map(|(key, data, ours)| {
            format!(
                "{key} is {ours} but the dataset {url} was encoded with {data}; set {key}={data} or another data.url"
            )
        })
        .collect()
}
