//! The check of the dataset: the manifest, the smallest shard, and the cache.

use std::{path::Path, time::Instant};

use arinar_data::{
    DataError,
    commands::verify::verify_smallest,
    format::Manifest,
    read::{
        cache::{self, choose_window, default_cache, needed_bytes},
        synthetic_samples,
    },
};
use arinar_place::local_path;
use arinar_store::{Store, StoreError};
use indicatif::DecimalBytes;

use super::{finding::Finding, folder::FolderCheck, store_probe};
use crate::{batch_source::mismatches, config::TrainConfig};

const SUBJECT: &str = "data.url";
const SHARD_SUBJECT: &str = "smallest shard";

/// A dataset whose manifest could be read.
pub(crate) enum ProbedDataset {
    /// Noise, with this number of samples in an epoch.
    Synthetic(u64),
    /// A dataset in a store.
    Encoded {
        manifest: Box<Manifest>,
        /// Shards are copied to a cache before they are read.
        is_cached: bool,
    },
}

impl ProbedDataset {
    /// Returns the number of samples in an epoch.
    pub(crate) fn samples(&self) -> u64 {
        match self {
            Self::Synthetic(samples) => *samples,
            Self::Encoded { manifest, .. } => manifest.num_samples,
        }
    }

    /// Returns the shards that are needed at the same time, or `None` if the limit of the cache is too small for any window,
    /// which [`probe`] has reported.
    pub(crate) fn window(&self, config: &TrainConfig) -> Option<ShuffleWindow> {
        let Self::Encoded { manifest, is_cached } = self else { return Some(ShuffleWindow::default()) };
        let window = choose_window(manifest, cache_limit(config, *is_cached), config.data.shuffle_window).ok()?;
        let bytes = if *is_cached { needed_bytes(manifest, window) } else { 0 };
        Some(ShuffleWindow::new(manifest.shards.len() as u64, window, bytes))
    }
}

/// The shards that are needed at the same time: those of the window being read, and of the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShuffleWindow {
    /// Bytes of them in the cache.
    pub cached_bytes: u64,
    /// They are all shards of the dataset.
    pub is_whole_dataset: bool,
}

impl ShuffleWindow {
    /// Computes it for a window of `window` among `shards` shards; 0 means all.
    fn new(shards: u64, window: u64, cached_bytes: u64) -> Self {
        Self { cached_bytes, is_whole_dataset: window == 0 || window.saturating_mul(2) >= shards }
    }

    /// Describes the shards.
    pub(crate) fn description(&self) -> &'static str {
        if self.is_whole_dataset { "the whole dataset" } else { "the shards of two windows" }
    }
}

/// Returns the limit of the cache, if shards are cached.
pub(crate) fn cache_limit(config: &TrainConfig, is_cached: bool) -> Option<u64> {
    config.data.cache_limit.map(|limit| limit.0).filter(|_| is_cached)
}

/// Reads the manifest of the dataset and its smallest shard. The manifest is compared with the model only if the configuration
/// is valid.
pub(crate) fn probe(config: &TrainConfig, config_is_valid: bool) -> (Option<ProbedDataset>, Vec<Finding>) {
    let url = &config.data.url;
    match synthetic_samples(url) {
        Some(Ok(samples)) => {
            let text = format!("{samples} samples of synthetic noise; the model learns nothing from them");
            return (Some(ProbedDataset::Synthetic(samples)), vec![Finding::note(SUBJECT, text)]);
        }
        Some(Err(stop)) => return (None, vec![Finding::problem(SUBJECT, stop)]),
        None => {}
    }
    let opened = store_probe::open(url).map_err(DataError::from).and_then(|store| Ok((Manifest::read(&store)?, store)));
    let (manifest, store) = match opened {
        Ok(opened) => opened,
        // It is reported with the other values of the configuration.
        Err(DataError::Store(StoreError::Place(_))) => return (None, Vec::new()),
        Err(problem) => return (None, vec![Finding::problem(SUBJECT, problem)]),
    };
    let mut findings = manifest_findings(config, config_is_valid, &manifest, &store);
    findings.push(read_smallest_shard(&store, &manifest));
    let is_cached = config.data.cache_dir.is_some() || !store.is_local();
    let window = choose_window(&manifest, cache_limit(config, is_cached), config.data.shuffle_window);
    findings.extend(window.err().map(|problem| Finding::problem("data.cache_limit", problem)));
    (Some(ProbedDataset::Encoded { manifest: Box::new(manifest), is_cached }), findings)
}

fn manifest_findings(config: &TrainConfig, config_is_valid: bool, manifest: &Manifest, store: &Store) -> Vec<Finding> {
    let problems = if config_is_valid { mismatches(manifest, store.url(), &config.model) } else { Vec::new() };
    if problems.is_empty() {
        let (samples, shards) = (manifest.num_samples, manifest.shards.len());
        let text = format!("{}: {samples} samples in {shards} shards, {} classes", store.url(), manifest.classes.len());
        return vec![Finding::ok(SUBJECT, text)];
    }
    problems.iter().map(|problem| Finding::problem(SUBJECT, problem)).collect()
}

fn read_smallest_shard(store: &Store, manifest: &Manifest) -> Finding {
    let began = Instant::now();
    match verify_smallest(store, manifest) {
        Ok(shard) => {
            let seconds = began.elapsed().as_secs_f64();
            let rate = DecimalBytes((shard.bytes as f64 / seconds.max(1e-6)) as u64);
            let (name, bytes) = (&shard.name, DecimalBytes(shard.bytes));
            Finding::ok(SHARD_SUBJECT, format!("{name} is valid; read and verified {bytes} at {rate}/s"))
        }
        Err(problem) => Finding::problem(SHARD_SUBJECT, problem),
    }
}

/// Checks the folder of the cache, if the dataset has one. Without a window, the needed space is unknown.
pub(crate) fn check_cache(
    config: &TrainConfig,
    dataset: &ProbedDataset,
    window: Option<ShuffleWindow>,
) -> Option<Finding> {
    const KEY: &str = "data.cache_dir";
    let ProbedDataset::Encoded { is_cached: true, .. } = dataset else { return None };
    let path = match &config.data.cache_dir {
        Some(folder) => local_path(Path::new(folder)).ok()?,
        None => default_cache(),
    };
    let needed = window.unwrap_or_default().cached_bytes;
    let purpose = window.map_or("shards", |window| window.description());
    let folder = FolderCheck { key: KEY, path: path.clone(), needed, purpose }.run();
    Some(match cache::probe(&path) {
        Err(problem) if !folder.is_problem() => Finding::problem(KEY, problem),
        _ => folder,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_window_or_half_the_shards_is_the_whole_dataset() {
        for (window, description) in [
            (0, "the whole dataset"),
            (1, "the shards of two windows"),
            (4, "the shards of two windows"),
            (5, "the whole dataset"),
            (u64::MAX, "the whole dataset"),
        ] {
            assert_eq!(ShuffleWindow::new(9, window, 1).description(), description, "{window}");
        }
    }
}
