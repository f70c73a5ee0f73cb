//! The loader: a rank's micro-batches in the global order, read ahead on a background thread.
//!
//! The thread reads records from the memory map, checks them, and draws latents in plain Rust; libtorch's thread pool is
//! left to the training. A batch is copied once more, into its tensors.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use tch::Tensor;

use crate::error::DataError;
use crate::format::shard::View;
use crate::random::{Purpose, SampleRandom};
use crate::read::cache::Prefetcher;
use crate::read::dataset::Dataset;
use crate::read::latent::sample_latent;
use crate::read::order::{MicroBatches, Place, Sharing};
use crate::read::shuffle::Shuffle;
use crate::read::token::{Position, ResumeToken};

/// How a rank reads.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Seed of order, flips and posterior noise.
    pub seed: u64,
    /// Samples of a step, over all ranks.
    pub global_batch: usize,
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Samples this rank gets at a time.
    pub micro_batch: usize,
    /// Micro-batches held ready; at least 1.
    pub look_ahead: usize,
    /// Shards shuffled together, 0 for all: [`Dataset::shuffle_window`].
    pub window: u64,
    /// Whether this rank fetches shards ahead for its node.
    pub prefetch: bool,
}

/// Which sample it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleKey {
    /// The epoch.
    pub epoch: u64,
    /// Index in the dataset.
    pub sample: u64,
    /// Index of its picture in the sorted list of all pictures.
    pub source_id: u64,
}

/// A micro-batch of b samples.
#[derive(Debug)]
pub struct Batch {
    /// Latents drawn from the posterior and scaled, [b, C, H, W] f32.
    pub latents: Tensor,
    /// Classes, `[b]` i64.
    pub labels: Tensor,
    /// Which samples they are, in order.
    pub samples: Vec<SampleKey>,
}

/// A micro-batch before it becomes tensors.
struct RawBatch {
    latents: Vec<f32>,
    labels: Vec<i64>,
    samples: Vec<SampleKey>,
}

/// Hands out a rank's micro-batches one after the other, without end.
#[derive(Debug)]
pub struct Loader {
    dataset: Arc<Dataset>,
    config: LoaderConfig,
    accumulation: u64,
    start: Position,
    handed_out: u64,
    batches: Option<Receiver<Result<RawBatch, DataError>>>,
    reader: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts reading from `start`.
    ///
    /// # Errors
    /// [`DataError::Batch`] when the ranks cannot share the global batch.
    pub fn new(dataset: Arc<Dataset>, config: LoaderConfig, start: Position) -> Result<Self, DataError> {
        let sharing = Sharing {
            global_batch: config.global_batch,
            rank: config.rank,
            world: config.world,
            micro_batch: config.micro_batch,
        };
        let shuffle = dataset.shuffle(config.seed, config.window);
        let order = MicroBatches::new(shuffle.clone(), sharing, start.0)?;
        let accumulation = sharing.accumulation()? as u64;
        let (sender, batches) = sync_channel(config.look_ahead.max(1));
        let prefetcher = match config.prefetch && dataset.is_cached() {
            true => Some(Prefetcher::start(dataset.clone(), shuffle.clone(), shuffle.window_of(start.0))?),
            false => None,
        };
        let mut reader = Reader::new(dataset.clone(), shuffle, order, prefetcher);
        let reader = std::thread::Builder::new()
            .name("data-reader".to_owned())
            .spawn(move || {
                // Ends when the loader is dropped, which closes the channel, or with the first error.
                loop {
                    let batch = reader.next_batch();
                    let failed = batch.is_err();
                    if sender.send(batch).is_err() || failed {
                        return;
                    }
                }
            })
            .map_err(|source| DataError::File { path: "data-reader thread".into(), source })?;
        // A local dataset's reader ends with the record it is at; one that downloads may take long, and a rank that
        // was told to end must not wait for it.
        let reader = (!dataset.is_cached()).then_some(reader);
        Ok(Self { dataset, config, accumulation, start, handed_out: 0, batches: Some(batches), reader })
    }

    /// The rank's next micro-batch; `accumulation` of them make its part of a global batch.
    ///
    /// # Errors
    /// [`DataError::Shard`] with shard and record named for damaged data; [`DataError::Stopped`] after an error.
    pub fn next_batch(&mut self) -> Result<Batch, DataError> {
        let raw = match &self.batches {
            Some(batches) => batches.recv().map_err(|_| DataError::Stopped)??,
            None => return Err(DataError::Stopped),
        };
        self.handed_out += 1;
        let [channels, height, width] = self.dataset.manifest.moments_shape().map(|size| size as i64);
        let count = raw.labels.len() as i64;
        let latents = Tensor::f_from_slice(&raw.latents)?.f_view([count, channels / 2, height, width])?;
        let labels = Tensor::f_from_slice(&raw.labels)?;
        Ok(Batch { latents, labels, samples: raw.samples })
    }

    /// Micro-batches of this rank in a global batch.
    pub fn accumulation(&self) -> usize {
        self.accumulation as usize
    }

    /// The place of the first global batch that is not handed out whole.
    pub fn position(&self) -> ResumeToken {
        let batches = self.handed_out / self.accumulation;
        let position = Position(self.start.0 + batches * self.config.global_batch as u64);
        ResumeToken::new(&self.dataset, self.config.seed, self.config.global_batch, self.config.window, position)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(reader) = self.reader.take() {
            // A panic of the reader has been printed, and next_batch answered Stopped.
            let _ = reader.join();
        }
    }
}

/// The background thread's state.
struct Reader {
    dataset: Arc<Dataset>,
    shuffle: Shuffle,
    order: MicroBatches,
    prefetcher: Option<Prefetcher>,
    /// The window that the rest of the program knows of.
    window: Option<u64>,
    latent_length: usize,
    scratch: Vec<f32>,
}

impl Reader {
    fn new(dataset: Arc<Dataset>, shuffle: Shuffle, order: MicroBatches, prefetcher: Option<Prefetcher>) -> Self {
        let latent_length = dataset.manifest.moments_shape().iter().product::<usize>() / 2;
        Self { dataset, shuffle, order, prefetcher, window: None, latent_length, scratch: Vec::new() }
    }

    /// Places never go back, so what only windows past needed is let go.
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
        let places = self.order.next_places();
        let seed = self.shuffle.seed();
        let mut batch = RawBatch {
            latents: vec![0.0; places.len() * self.latent_length],
            labels: Vec::with_capacity(places.len()),
            samples: Vec::with_capacity(places.len()),
        };
        let scale = self.dataset.manifest.vae.scale as f32;
        for (latent, &Place { epoch, window, sample }) in
            batch.latents.chunks_exact_mut(self.latent_length).zip(&places)
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
