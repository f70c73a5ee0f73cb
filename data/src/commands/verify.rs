//! `arinar-data verify`: is every shard as the manifest says? With `--repair`, damaged ones are replaced by copies.

use std::path::Path;

use crate::commands::repair::Copies;
use crate::error::DataError;
use crate::format::manifest::{Manifest, ShardFacts};
use crate::format::shard::{ShardError, ShardLayout, check_shard};
use crate::progress::Progress;
use arinar_store::Store;

/// Where copies for a repair may be, besides the user's cache folder.
#[derive(Clone, Copy, Debug, Default)]
pub struct Repair<'a> {
    /// Folder of cached shards; `None` for the user's own.
    pub cache_folder: Option<&'a Path>,
    /// URL of a second copy of the dataset.
    pub from: Option<&'a str>,
}

/// What was found and done.
#[derive(Debug)]
pub struct Verification {
    /// Shards looked at.
    pub shards: usize,
    /// Records in them.
    pub records: u64,
    /// Shards that were damaged and are sound now: name, and where the copy lay.
    pub repaired: Vec<(String, String)>,
    /// The damaged shards that are left, and which copies were tried; none were where no repair was asked for.
    pub damaged: Vec<(DataError, String)>,
}

/// Checks size and XXH3 of every shard; with `deep` each record's CRC32C and label too. Goes on after a damaged one.
/// With `repair` a damaged shard is replaced by a copy that verifies.
///
/// # Errors
/// When there is no dataset, the store fails, or the second copy is one of another dataset.
pub fn verify(url: &str, deep: bool, repair: Option<Repair<'_>>) -> Result<Verification, DataError> {
    let store = Store::open(url)?;
    let manifest = Manifest::read(&store)?;
    let copies = repair.map(|repair| Copies::of(&manifest, repair.cache_folder, repair.from)).transpose()?;
    let mut progress = Progress::new("shards", manifest.shards.len() as u64, false);
    let (mut repaired, mut damaged) = (Vec::new(), Vec::new());
    for facts in &manifest.shards {
        let sound = |file: &[u8]| check(file, &manifest, facts, deep);
        let found = match store.get(&facts.name) {
            Err(error) if error.is_missing() => Err(ShardError::Missing),
            file => sound(&file?),
        };
        if let Err(source) = found {
            let error = DataError::Shard { url: store.url_of(&facts.name), source };
            match copies.as_ref().map(|copies| copies.repair(&store, facts, sound)).transpose()? {
                Some(Ok(place)) => repaired.push((facts.name.clone(), place)),
                tried => damaged.push((error, tried.and_then(Result::err).unwrap_or_default())),
            }
        }
        progress.advance(1);
    }
    Ok(Verification { shards: manifest.shards.len(), records: manifest.num_samples, repaired, damaged })
}

/// Reads the smallest shard as it lies in the store, past every cache, and checks all of it. Returns what it is.
///
/// # Errors
/// [`DataError::Shard`] when it is damaged or gone, or what the store says.
pub fn verify_smallest(store: &Store, manifest: &Manifest) -> Result<ShardFacts, DataError> {
    let smallest = manifest.shards.iter().min_by_key(|shard| shard.bytes);
    let Some(facts) = smallest else { return Err(DataError::NoDataset { url: store.url().to_owned() }) };
    let sound = match store.get(&facts.name) {
        Err(error) if error.is_missing() => Err(ShardError::Missing),
        file => check(&file?, manifest, facts, true),
    };
    sound.map_err(|source| DataError::Shard { url: store.url_of(&facts.name), source })?;
    Ok(facts.clone())
}

fn check(file: &[u8], manifest: &Manifest, facts: &ShardFacts, deep: bool) -> Result<(), ShardError> {
    let layout = check_shard(file, facts, manifest.moments_shape())?;
    if deep { deep_check(file, &layout, manifest.classes.len()) } else { Ok(()) }
}

fn deep_check(file: &[u8], layout: &ShardLayout, classes: usize) -> Result<(), ShardError> {
    layout.check_records(file)?;
    for record in 0..layout.count() {
        let (label, source_id) = layout.facts(file, record);
        if !(0..classes as i64).contains(&label) {
            return Err(ShardError::Label { record, source_id, label, classes });
        }
    }
    Ok(())
}
