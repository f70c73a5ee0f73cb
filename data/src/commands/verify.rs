//! `arinar-data verify`: compares every shard with the manifest, and with `--repair` replaces damaged ones.

use std::path::Path;

use crate::commands::repair::Copies;
use crate::error::DataError;
use crate::format::facts::ShardFacts;
use crate::format::manifest::Manifest;
use crate::format::shard::{ShardError, ShardLayout, check_shard};
use crate::progress::Progress;
use crate::reporter::Reporter;
use arinar_store::Store;

/// Locations of copies for a repair.
#[derive(Clone, Copy, Debug, Default)]
pub struct Repair<'a> {
    /// Folder of cached shards; `None` for the user's cache folder.
    pub cache_folder: Option<&'a Path>,
    /// URL of a second copy of the dataset.
    pub from: Option<&'a str>,
}

/// Result of a verification.
#[derive(Debug)]
pub struct Verification {
    /// Number of shards verified.
    pub shards: usize,
    /// Number of records in them.
    pub records: u64,
    /// Shards that were damaged and have been repaired: the name, and the location of the copy.
    pub repaired: Vec<(String, String)>,
    /// Shards that are still damaged, and the copies that were tried if a repair was requested.
    pub damaged: Vec<(DataError, String)>,
}

/// Verifies size and XXH3 of every shard, and with `deep` also the CRC32C and the label of every record. Continues
/// after a damaged shard. With `repair`, replaces a damaged shard by an intact copy.
///
/// # Errors
/// Returns an error if there is no dataset, if the store fails, or if the second copy is a different dataset.
pub fn verify(
    url: &str,
    deep: bool,
    repair: Option<Repair<'_>>,
    reporter: &Reporter,
) -> Result<Verification, DataError> {
    let store = Store::open(url)?;
    let manifest = Manifest::read(&store)?;
    let copies = repair.map(|repair| Copies::of(&manifest, repair.cache_folder, repair.from)).transpose()?;
    let mut progress = Progress::start(reporter, "shards", manifest.shards.len() as u64);
    let (mut repaired, mut damaged) = (Vec::new(), Vec::new());
    for facts in &manifest.shards {
        let check_file = |file: &[u8]| check(file, &manifest, facts, deep);
        let found = match store.get(&facts.name) {
            Err(error) if error.is_missing() => Err(ShardError::Missing),
            file => check_file(&file?),
        };
        if let Err(source) = found {
            let error = DataError::Shard { url: store.url_of(&facts.name), source };
            match copies.as_ref().map(|copies| copies.repair(&store, facts, check_file)).transpose()? {
                Some(Ok(location)) => repaired.push((facts.name.clone(), location)),
                tried => damaged.push((error, tried.and_then(Result::err).unwrap_or_default())),
            }
        }
        progress.advance(1);
    }
    Ok(Verification { shards: manifest.shards.len(), records: manifest.num_samples, repaired, damaged })
}

/// Reads the smallest shard from the store, bypassing the cache, and verifies all of its records. Returns its facts.
///
/// # Errors
/// Returns [`DataError::Shard`] if it is damaged or missing, or an error of the store.
pub fn verify_smallest(store: &Store, manifest: &Manifest) -> Result<ShardFacts, DataError> {
    let smallest = manifest.shards.iter().min_by_key(|shard| shard.bytes);
    let Some(facts) = smallest else { return Err(DataError::NoDataset { url: store.url().to_owned() }) };
    let result = match store.get(&facts.name) {
        Err(error) if error.is_missing() => Err(ShardError::Missing),
        file => check(&file?, manifest, facts, true),
    };
    result.map_err(|source| DataError::Shard { url: store.url_of(&facts.name), source })?;
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
