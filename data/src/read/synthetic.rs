//! A source of seeded noise with the shape of a dataset's latents, for runs that need no data.

use tch::Tensor;

use crate::error::DataError;
use crate::random::{Purpose, SampleRandom};
use crate::read::batch_layout::BatchLayout;
use crate::read::batch_source::{Batch, BatchSource, SampleKey};
use crate::read::token::ResumeToken;

/// Prefix of the URLs of synthetic datasets.
const SCHEME: &str = "synthetic:";
/// Samples of a synthetic dataset whose URL names no number.
const DEFAULT_SAMPLES: u64 = 10_000;

/// Returns the number of samples of the synthetic dataset at `url`, or `None` if `url` names another kind of dataset.
///
/// # Errors
/// Returns [`DataError::SyntheticUrl`] if the URL does not end with a positive number.
pub fn synthetic_samples(url: &str) -> Option<Result<u64, DataError>> {
    let number = url.strip_prefix(SCHEME)?.trim_start_matches('/');
    if number.is_empty() {
        return Some(Ok(DEFAULT_SAMPLES));
    }
    Some(match number.parse() {
        Ok(samples) if samples > 0 => Ok(samples),
        _ => Err(DataError::SyntheticUrl(number.to_owned())),
    })
}

/// Returns the dataset id of `samples` synthetic samples.
pub fn synthetic_id(samples: u64) -> String {
    format!("{SCHEME}{samples}")
}

/// Options of a [`SyntheticSource`].
#[derive(Clone, Debug)]
pub struct SyntheticConfig {
    /// Seed of the noise.
    pub seed: u64,
    /// Samples in an epoch.
    pub samples: u64,
    /// Number of classes.
    pub classes: u64,
    /// Shape of a latent: [C, H, W].
    pub shape: [i64; 3],
    /// Division of the global batches.
    pub layout: BatchLayout,
}

/// Seeded standard normal noise in the order of an unshuffled dataset. Sample `i` has class `i` modulo the number of
/// classes, and is the same in every epoch and for every world size.
#[derive(Debug)]
pub struct SyntheticSource {
    config: SyntheticConfig,
    /// Samples that all ranks together had read when this source started.
    start: u64,
    micro_batches: u64,
}

impl SyntheticSource {
    /// Creates a source that starts at the first sample.
    pub fn new(config: SyntheticConfig) -> Self {
        Self { config, start: 0, micro_batches: 0 }
    }

    /// Creates a source that starts at the position of a checkpoint.
    ///
    /// # Errors
    /// Returns [`DataError::SyntheticResume`] if the checkpoint was saved with other data, another seed or another
    /// global batch.
    pub fn resume(config: SyntheticConfig, token: &ResumeToken) -> Result<Self, DataError> {
        let source = Self::new(config);
        let saved = ResumeToken { epoch: 0, position: 0, ..token.clone() };
        let ours = source.position();
        if saved != ours {
            return Err(DataError::SyntheticResume { saved: describe(&saved), ours: describe(&ours) });
        }
        let start = token.epoch * source.config.samples + token.position;
        Ok(Self { start, ..source })
    }
}

impl BatchSource for SyntheticSource {
    fn next_batch(&mut self) -> Result<Batch, DataError> {
        let SyntheticConfig { seed, samples, classes, shape, layout } = self.config;
        let first = self.start + layout.start_of(self.micro_batches);
        self.micro_batches += 1;
        let count = layout.micro_batch();
        let elements = shape.iter().product::<i64>() as usize;
        let mut latents = vec![0.0; elements * count];
        let mut labels = Vec::with_capacity(count);
        let mut keys = Vec::with_capacity(count);
        for (position, latent) in (first..).zip(latents.chunks_exact_mut(elements)) {
            let (epoch, sample) = (position / samples, position % samples);
            SampleRandom::new(seed, 0, sample, Purpose::PosteriorNoise).fill_normal(latent);
            labels.push((sample % classes) as i64);
            keys.push(SampleKey { epoch, sample, source_id: sample });
        }
        let [channels, height, width] = shape;
        let latents = Tensor::f_from_slice(&latents)?.f_view([count as i64, channels, height, width])?;
        let labels = Tensor::f_from_slice(&labels)?;
        Ok(Batch { latents, labels, samples: keys })
    }

    fn position(&self) -> ResumeToken {
        let SyntheticConfig { seed, samples, layout, .. } = &self.config;
        let position = self.start + layout.complete_samples(self.micro_batches);
        ResumeToken {
            version: 1,
            dataset_id: synthetic_id(*samples),
            seed: *seed,
            epoch: position / samples,
            position: position % samples,
            window: 0,
            global_batch: layout.global_batch() as u64,
        }
    }
}

fn describe(token: &ResumeToken) -> String {
    format!("{} (seed {}, global batch {})", token.dataset_id, token.seed, token.global_batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(global_batch: usize) -> SyntheticConfig {
        let layout = BatchLayout::new(global_batch, 0, 1, 2).expect("a layout");
        SyntheticConfig { seed: 1, samples: 10, classes: 3, shape: [2, 1, 1], layout }
    }

    #[test]
    fn a_url_names_the_number_of_samples() {
        let samples = |url| synthetic_samples(url).map(|samples| samples.map_err(|error| error.to_string()));
        assert_eq!(samples("synthetic:"), Some(Ok(10_000)));
        assert_eq!(samples("synthetic://1000"), Some(Ok(1000)));
        assert_eq!(samples("s3://bucket/dataset"), None);
        for wrong in ["synthetic:0", "synthetic:-1", "synthetic:many"] {
            let error = samples(wrong).expect("synthetic").expect_err(wrong);
            assert!(error.contains("is not a number of samples"), "{error}");
        }
    }

    #[test]
    fn a_resumed_source_repeats_the_first_incomplete_global_batch() {
        let mut source = SyntheticSource::new(config(4));
        let batches: Vec<_> = (0..7).map(|_| source.next_batch().expect("a batch").samples).collect();
        let token = source.position();
        assert_eq!((token.epoch, token.position), (1, 2));
        let mut resumed = SyntheticSource::resume(config(4), &token).expect("the same data");
        assert_eq!(resumed.next_batch().expect("a batch").samples, batches[6]);
        let error = SyntheticSource::resume(config(2), &token).map(|_| ()).expect_err("another batch").to_string();
        assert!(error.contains("global batch 4") && error.contains("global batch 2"), "{error}");
    }
}
