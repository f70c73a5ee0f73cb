//! Where batches come from: an encoded dataset, or seeded noise of the right shape.

use std::sync::Arc;

use arinar_data::{
    DataError,
    format::Manifest,
    random::{Purpose, SampleRandom},
    read::{Batch, Dataset, Loader, LoaderConfig, Position, ResumeToken, SampleKey, cache::CacheConfig},
};
use arinar_model::config::ModelConfig;
use tch::Tensor;

use crate::{
    checkpoint::DatasetFacts,
    collective::Launch,
    config::{BatchShare, TrainConfig},
    exit::Stop,
};

/// One rank's micro-batches, without end.
pub trait BatchSource {
    /// The next micro-batch.
    ///
    /// # Errors
    /// Damaged or unreachable data.
    fn next_batch(&mut self) -> Result<Batch, DataError>;

    /// The first global batch that is not handed out whole.
    fn position(&self) -> ResumeToken;
}

impl BatchSource for Loader {
    fn next_batch(&mut self) -> Result<Batch, DataError> {
        Loader::next_batch(self)
    }

    fn position(&self) -> ResumeToken {
        Loader::position(self)
    }
}

/// What `data.url` names.
pub enum Data {
    /// A dataset made by `arinar-data encode`.
    Encoded(Arc<Dataset>),
    /// That many samples of seeded noise.
    Synthetic(u64),
}

/// Samples of a synthetic dataset that names no number.
const SYNTHETIC_SAMPLES: u64 = 10_000;

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
            return samples.map(Self::Synthetic);
        }
        let cache = CacheConfig {
            folder: config.data.cache_dir.as_ref().map(std::path::PathBuf::from),
            limit: config.data.cache_limit.map(|limit| limit.0),
        };
        let dataset = Dataset::open_with_cache(&config.data.url, cache).map_err(data_error)?;
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
                    world: share.world,
                    micro_batch: share.batch.micro,
                    look_ahead: config.data.look_ahead,
                    window,
                    prefetch: Launch::from_environment().is_none_or(|launch| launch.local_rank == 0),
                };
                let loader = Loader::new(dataset.clone(), loader, start).map_err(data_error)?;
                Ok(Box::new(loader))
            }
            Self::Synthetic(samples) => {
                let noise = Noise::new(config, share, *samples);
                Ok(Box::new(match token {
                    Some(token) => noise.resume(token)?,
                    None => noise,
                }))
            }
        }
    }
}

/// Samples of the synthetic dataset that `url` names; `None` for an encoded one.
///
/// # Errors
/// [`Stop::Configuration`] for what is no number of samples.
pub fn synthetic_samples(url: &str) -> Option<Result<u64, Stop>> {
    let number = url.strip_prefix("synthetic:")?.trim_start_matches('/');
    if number.is_empty() {
        return Some(Ok(SYNTHETIC_SAMPLES));
    }
    Some(match number.parse() {
        Ok(samples) if samples > 0 => Ok(samples),
        _ => Err(Stop::Configuration(format!(
            "data.url: {number:?} is not a number of samples; write synthetic: or synthetic:1000"
        ))),
    })
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

fn synthetic_id(samples: u64) -> String {
    format!("synthetic:{samples}")
}

/// Seeded noise in the global order of an unshuffled dataset.
struct Noise {
    token: ResumeToken,
    share: RankShare,
    shape: [i64; 3],
    classes: u64,
    samples: u64,
    /// Samples handed out to all ranks when this source started.
    start: u64,
    micro_batches: u64,
}

impl Noise {
    fn new(config: &TrainConfig, share: RankShare, samples: u64) -> Self {
        let token = ResumeToken {
            version: 1,
            dataset_id: synthetic_id(samples),
            seed: config.seed,
            epoch: 0,
            position: 0,
            window: 0,
            global_batch: config.batch.global as u64,
        };
        let grid = config.model.grid();
        let shape = [config.model.vae.channels, grid, grid];
        let classes = config.model.classes as u64;
        Self { token, share, shape, classes, samples, start: 0, micro_batches: 0 }
    }

    fn resume(mut self, token: &ResumeToken) -> Result<Self, Stop> {
        let fresh = ResumeToken { epoch: 0, position: 0, ..token.clone() };
        if fresh != self.token {
            return Err(Stop::Configuration(format!(
                "the checkpoint goes on with {} (seed {}, global batch {}), not {} (seed {}, \
                 global batch {}); set them as they were, or run.dir to a new folder",
                fresh.dataset_id,
                fresh.seed,
                fresh.global_batch,
                self.token.dataset_id,
                self.token.seed,
                self.token.global_batch
            )));
        }
        self.start = token.epoch * self.samples + token.position;
        Ok(self)
    }

    fn accumulation(&self) -> u64 {
        self.share.batch.accumulation as u64
    }

    /// Place in the global sequence of this rank's next micro-batch.
    fn next_place(&self) -> u64 {
        let micro = self.share.batch.micro as u64;
        let (step, part) = (self.micro_batches / self.accumulation(), self.micro_batches % self.accumulation());
        let within = (part * self.share.world as u64 + self.share.rank as u64) * micro;
        self.start + step * self.token.global_batch + within
    }
}

impl BatchSource for Noise {
    fn next_batch(&mut self) -> Result<Batch, DataError> {
        let first = self.next_place();
        self.micro_batches += 1;
        let size = self.share.batch.micro as u64;
        let elements = self.shape.iter().product::<i64>() as usize;
        let mut latents = vec![0.0; elements * size as usize];
        let mut labels = Vec::new();
        let mut samples = Vec::new();
        for (place, latent) in (first..first + size).zip(latents.chunks_exact_mut(elements)) {
            let (epoch, sample) = (place / self.samples, place % self.samples);
            SampleRandom::new(self.token.seed, 0, sample, Purpose::PosteriorNoise).fill_normal(latent);
            labels.push((sample % self.classes) as i64);
            samples.push(SampleKey { epoch, sample, source_id: sample });
        }
        let [channels, height, width] = self.shape;
        let shape = [size as i64, channels, height, width];
        let latents = Tensor::f_from_slice(&latents)?.f_view(shape)?;
        let labels = Tensor::f_from_slice(&labels)?;
        Ok(Batch { latents, labels, samples })
    }

    fn position(&self) -> ResumeToken {
        let steps = self.micro_batches / self.accumulation();
        let place = self.start + steps * self.token.global_batch;
        ResumeToken { epoch: place / self.samples, position: place % self.samples, ..self.token.clone() }
    }
}
