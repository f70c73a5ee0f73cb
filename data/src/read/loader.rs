//! The loader: reads a rank's micro-batches in the global order ahead of time, on a background thread.
//!
//! The thread reads records from the memory map, verifies them, and draws latents in plain Rust, so that libtorch's
//! thread pool is left to the training. Each batch is then copied once, into its tensors.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use tch::Tensor;

use crate::error::DataError;
use crate::format::shard::View;
use crate::random::{Purpose, SampleRandom};
use crate::read::batch_layout::BatchLayout;
use crate::read::batch_source::{Batch, BatchSource, SampleKey};
use crate::read::dataset::Dataset;
use crate::read::latent::sample_latent;
use crate::read::order::{MicroBatches, ScheduledSample};
use crate::read::prefetch::Prefetcher;
use crate::read::shuffle::Shuffle;
use crate::read::token::{Position, ResumeToken};

/// Options of a [`Loader`].
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Seed of the order, the flips and the posterior noise.
    pub seed: u64,
    /// Samples of a step over all ranks.
    pub global_batch: usize,
    /// Rank of this process.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// Samples in a micro-batch of this rank.
    pub micro_batch: usize,
    /// Number of micro-batches to keep ready; at least 1.
    pub look_ahead: usize,
    /// Number of shards shuffled together, 0 for all: see [`Dataset::shuffle_window`].
    pub window: u64,
    /// Whether this rank prefetches shards for its node.
    pub prefetch: bool,
}

/// A micro-batch before its conversion to tensors.
struct RawBatch {
    latents: Vec<f32>,
    labels: Vec<i64>,
    samples: Vec<SampleKey>,
}

/// A [`BatchSource`] that reads an encoded dataset.
#[derive(Debug)]
pub struct Loader {
    dataset: Arc<Dataset>,
    config: LoaderConfig,
    layout: BatchLayout,
    start: Position,
    returned: u64,
    batches: Option<Receiver<Result<RawBatch, DataError>>>,
    reader: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts reading at `start`.
    ///
    /// # Errors
    /// Returns [`DataError::Batch`] if the ranks cannot share the global batch evenly.
    pub fn new(dataset: Arc<Dataset>, config: LoaderConfig, start: Position) -> Result<Self, DataError> {
        let layout = BatchLayout::new(config.global_batch, config.rank, config.world_size, config.micro_batch)?;
        let shuffle = dataset.shuffle(config.seed, config.window);
        let order = MicroBatches::new(shuffle.clone(), layout, start.0);
        let (sender, batches) = sync_channel(config.look_ahead.max(1));
        let prefetcher = match config.prefetch && dataset.is_cached() {
            true => Some(Prefetcher::start(dataset.clone(), shuffle.clone(), shuffle.window_of(start.0))?),
            false => None,
        };
        let mut reader = Reader::new(dataset.clone(), shuffle, order, prefetcher);
        let reader = std::thread::Builder::new()
            .name("data-reader".to_owned())
            .spawn(move || {
                // Ends after the first error, or when dropping the loader closes the channel.
                loop {
                    let batch = reader.next_batch();
                    let failed = batch.is_err();
                    if sender.send(batch).is_err() || failed {
                        return;
                    }
                }
            })
            .map_err(|source| DataError::File { path: "data-reader thread".into(), source })?;
        // The reader of a local dataset ends after the current record. One that downloads may take long, and a rank
        // that is shutting down must not wait for it.
        let reader = (!dataset.is_cached()).then_some(reader);
        Ok(Self { dataset, config, layout, start, returned: 0, batches: Some(batches), reader })
    }

    /// Number of micro-batches of this rank in a global batch.
    pub fn accumulation(&self) -> usize {
        self.layout.accumulation()
    }
}

impl BatchSource for Loader {
    /// Returns the next micro-batch.
    ///
    /// # Errors
    /// Returns [`DataError::Shard`], which names shard and record, if the data are damaged, and [`DataError::Stopped`]
    /// after an earlier error.
    fn next_batch(&mut self) -> Result<Batch, DataError> {
        let raw = match &self.batches {
            Some(batches) => batches.recv().map_err(|_| DataError::Stopped)??,
            None => return Err(DataError::Stopped),
        };
        self.returned += 1;
        let [channels, height, width] = self.dataset.manifest.moments_shape().map(|size| size as i64);
        let count = raw.labels.len() as i64;
        let latents = Tensor::f_from_slice(&raw.latents)?.f_view([count, channels / 2, height, width])?;
        let labels = Tensor::f_from_slice(&raw.labels)?;
        Ok(Batch { latents, labels, samples: raw.samples })
    }

    fn position(&self) -> ResumeToken {
        let LoaderConfig { seed, global_batch, window, .. } = self.config;
        let position = Position(self.start.0 + self.layout.complete_samples(self.returned));
        ResumeToken::new(&self.dataset.manifest, seed, global_batch, window, position)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(reader) = self.reader.take() {
            // A panic of the reader has been reported: next_batch has returned Stopped.
            let _ = reader.join();
        }
    }
}

/// State of the background thread.
struct Reader {
    dataset: Arc<Dataset>,
    shuffle: Shuffle,
    order: MicroBatches,
    prefetcher: Option<Prefetcher>,
    /// The current window, as last reported to dataset and prefetcher.
    window: Option<u64>,
    latent_length: usize,
    scratch: Vec<f32>,
}

impl Reader {
    fn new(dataset: Arc<Dataset>, shuffle: Shuffle, order: MicroBatches, prefetcher: Option<Prefetcher>) -> Self {
        let latent_length = dataset.manifest.moments_shape().iter().product::<usize>() / 2;
        Self { dataset, shuffle, order, prefetcher, window: None, latent_length, scratch: Vec::new() }
    }

    /// Moves on to `window`. Positions only increase, so shards that only earlier windows need are released.
    fn enter(&mut self, window: u64) {
        if self.window != Some(window) {
            self.window = Some(window);
            self.dataset.enter_window(&self.shuffle, window);
            if let Some(prefetcher) = &self.prefetcher {
                prefetcher.enter(window);
            }
        }
    }

    fn next_batch(&mut self) -> Result<RawBatch, DataError> {
        let scheduled = self.order.next_samples();
        let seed = self.shuffle.seed();
        let mut batch = RawBatch {
            latents: vec![0.0; scheduled.len() * self.latent_length],
            labels: Vec::with_capacity(scheduled.len()),
            samples: Vec::with_capacity(scheduled.len()),
        };
        let scale = self.dataset.manifest.vae.scale as f32;
        for (latent, &ScheduledSample { epoch, window, sample }) in
            batch.latents.chunks_exact_mut(self.latent_length).zip(&scheduled)
        {
            self.enter(window);
            let mirrored = SampleRandom::new(seed, epoch, sample, Purpose::Flip).bernoulli(0.5);
            let view = if mirrored { View::Mirrored } else { View::Original };
            SampleRandom::new(seed, epoch, sample, Purpose::PosteriorNoise).fill_normal(latent);
            let scratch = &mut self.scratch;
            let (label, source_id) = self.dataset.with_record(sample, view, |record| {
                sample_latent(record.moments, scale, latent, scratch);
                (record.label, record.source_id)
            })?;
            batch.labels.push(label);
            batch.samples.push(SampleKey { epoch, sample, source_id: source_id as u64 });
        }
        Ok(batch)
    }
}
