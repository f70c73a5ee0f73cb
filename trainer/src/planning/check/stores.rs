//! The stores of a run: can it read its dataset, and put, get and delete in its folder?

use std::time::Instant;

use arinar_data::{
    DataError,
    commands::verify::verify_smallest,
    format::Manifest,
    read::{
        cache::{choose_window, needed_bytes},
        synthetic_samples,
    },
};
use arinar_store::{
    Environment, RETRY_TIMEOUT_VARIABLE, Store, StoreError,
    lease::{Lease, LeaseError},
};
use indicatif::DecimalBytes;

use super::{
    finding::Finding,
    places::{nearest_folder, try_writing},
};
use crate::{batch_source::mismatches, config::TrainConfig};

/// Seconds for which a store that fails is asked again, unless the user has said otherwise: whoever checks waits.
const PATIENCE: &str = "10";

/// Opens a store for a check.
///
/// # Errors
/// A URL or credentials that cannot be used.
pub fn open(url: &str) -> Result<Store, StoreError> {
    Store::open_with(url, &Environment::from_process().with_default(RETRY_TIMEOUT_VARIABLE, PATIENCE))
}

/// The dataset of a run, as far as it could be read.
pub enum Data {
    /// Noise, of which an epoch has so many samples.
    Synthetic(u64),
    /// An encoded dataset.
    Encoded {
        /// Its manifest.
        manifest: Box<Manifest>,
        /// Its shards are copied to a cache before they are read.
        cached: bool,
    },
}

impl Data {
    /// Samples of an epoch.
    pub fn samples(&self) -> u64 {
        match self {
            Self::Synthetic(samples) => *samples,
            Self::Encoded { manifest, .. } => manifest.num_samples,
        }
    }

    /// What is read at once; `None` where the cache's limit is too small for any window, which is told by itself.
    pub fn window(&self, config: &TrainConfig) -> Option<Window> {
        let Self::Encoded { manifest, cached } = self else { return Some(Window::default()) };
        let window = choose_window(manifest, limit(config, *cached), config.data.shuffle_window).ok()?;
        let bytes = if *cached { needed_bytes(manifest, window) } else { 0 };
        Some(Window::of(manifest.shards.len() as u64, window, bytes))
    }
}

/// Shards that samples are drawn from, those of the window being read and of the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// How many are open at once.
    pub open: u64,
    /// Bytes that the cache must hold for them.
    pub bytes: u64,
    /// They are all that the dataset has.
    pub whole: bool,
}

impl Window {
    /// Of `window` of the dataset's `shards`; 0 for all.
    fn of(shards: u64, window: u64, bytes: u64) -> Self {
        let open = if window == 0 { shards } else { shards.min(window.saturating_mul(2)) };
        Self { open, bytes, whole: open == shards }
    }

    /// In words.
    pub fn described(&self) -> &'static str {
        if self.whole { "the whole dataset" } else { "the shards of two windows" }
    }
}

fn limit(config: &TrainConfig, cached: bool) -> Option<u64> {
    config.data.cache_limit.map(|limit| limit.0).filter(|_| cached)
}

/// Opens the dataset and reads one shard of it. Where the configuration's model is not `sound`, it is not compared.
pub fn dataset(config: &TrainConfig, sound: bool) -> (Option<Data>, Vec<Finding>) {
    const WHAT: &str = "data.url";
    let url = &config.data.url;
    match synthetic_samples(url) {
        Some(Ok(samples)) => {
            let finding = Finding::note(WHAT, format!("{samples} samples of noise: nothing is learnt from them"));
            return (Some(Data::Synthetic(samples)), vec![finding]);
        }
        Some(Err(stop)) => return (None, vec![Finding::problem(WHAT, stop)]),
        None => {}
    }
    let opened = open(url).map_err(DataError::from).and_then(|store| Ok((Manifest::read(&store)?, store)));
    let (manifest, store) = match opened {
        Ok(opened) => opened,
        Err(problem) => return (None, vec![Finding::problem(WHAT, problem)]),
    };
    let mut findings = Vec::new();
    let problems = if sound { mismatches(&manifest, store.url(), &config.model) } else { Vec::new() };
    if problems.is_empty() {
        let (samples, shards) = (manifest.num_samples, manifest.shards.len());
        let told = format!("{}: {samples} samples in {shards} shards, {} classes", store.url(), manifest.classes.len());
        findings.push(Finding::ok(WHAT, told));
    }
    findings.extend(problems.iter().map(|problem| Finding::problem(WHAT, problem)));
    findings.push(read_shard(&store, &manifest));
    let cached = config.data.cache_dir.is_some() || !store.is_local();
    let window = choose_window(&manifest, limit(config, cached), config.data.shuffle_window);
    findings.extend(window.err().map(|problem| Finding::problem("data.cache_limit", problem)));
    (Some(Data::Encoded { manifest: Box::new(manifest), cached }), findings)
}

fn read_shard(store: &Store, manifest: &Manifest) -> Finding {
    let began = Instant::now();
    match verify_smallest(store, manifest) {
        Ok(shard) => {
            let seconds = began.elapsed().as_secs_f64();
            let rate = DecimalBytes((shard.bytes as f64 / seconds.max(1e-6)) as u64);
            let (name, bytes) = (&shard.name, DecimalBytes(shard.bytes));
            Finding::ok("a shard", format!("{name} is sound; its {bytes} were read and verified at {rate}/s"))
        }
        Err(problem) => Finding::problem("a shard", problem),
    }
}

/// Lists the run's folder, and puts, gets and deletes a small object there. Where a local folder is not there, the nearest is tried
/// instead, and none is made.
pub fn run_folder(store: &Store) -> Finding {
    const WHAT: &str = "run.dir";
    let url = store.url();
    if let Some(path) = store.local_path("").filter(|path| !path.is_dir()) {
        let tried = nearest_folder(&path).and_then(|folder| {
            try_writing(&folder).map_err(|error| format!("no file can be written in {} ({error})", folder.display()))
        });
        return match tried {
            Ok(()) => Finding::ok(WHAT, format!("{url} will be made")),
            Err(problem) => Finding::problem(WHAT, format!("{url}: {problem}; set run.dir to another place")),
        };
    }
    match put_get_delete(store) {
        Ok(()) => Finding::ok(WHAT, format!("{url}: list, put, get and delete work")),
        Err(problem) => Finding::problem(WHAT, problem),
    }
}

/// Whether another job writes there.
pub fn lease(store: &Store) -> Finding {
    const WHAT: &str = "lease";
    match Lease::probe(store) {
        Ok(()) => Finding::ok(WHAT, format!("nobody else writes to {}", store.url())),
        Err(LeaseError::Store(problem)) => Finding::problem(WHAT, problem),
        Err(held) => Finding::problem(WHAT, held),
    }
}

fn put_get_delete(store: &Store) -> Result<(), StoreError> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let letters: String = host.chars().filter(char::is_ascii_alphanumeric).collect();
    // A run lists its checkpoints first; and where there is no bucket, some stores would make one to put into.
    store.list("")?;
    let mut probe = Probe { store, name: format!("check-{letters}-{}.tmp", std::process::id()) };
    let contents = probe.name.clone().into_bytes();
    if !store.put_new(&probe.name, contents.clone())? {
        // Not this check's to delete.
        let url = store.url_of(&std::mem::take(&mut probe.name));
        return Err(StoreError::Other { url, source: "it exists already; delete it and check again".into() });
    }
    let found = store.get(&probe.name)?;
    if found != contents {
        let (url, bytes) = (store.url_of(&probe.name), found.len() as u64);
        return Err(StoreError::Size { url, expected: contents.len() as u64, found: bytes });
    }
    store.delete(&probe.name)
}

/// An object that is gone in the end, whatever fails in between.
struct Probe<'a> {
    store: &'a Store,
    name: String,
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // If it cannot be deleted, that has been said already.
            let _ = self.store.delete(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_none_or_of_half_is_the_whole_dataset() {
        for (window, open, described) in [
            (0, 9, "the whole dataset"),
            (1, 2, "the shards of two windows"),
            (4, 8, "the shards of two windows"),
            (5, 9, "the whole dataset"),
            (u64::MAX, 9, "the whole dataset"),
        ] {
            let found = Window::of(9, window, 1);
            assert_eq!((found.open, found.described()), (open, described), "{window}");
        }
    }
}
