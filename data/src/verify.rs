//! `arinar-data verify`: is every shard as the manifest says?

use crate::error::DataError;
use crate::manifest::{Manifest, ShardFacts};
use crate::progress::Progress;
use crate::shard::{ShardError, ShardLayout, check_shard};
use crate::store::Store;

/// What was found.
#[derive(Debug)]
pub struct Verification {
    /// Shards looked at.
    pub shards: usize,
    /// Records in them.
    pub records: u64,
    /// The damaged shards.
    pub damaged: Vec<DataError>,
}

/// Checks size and XXH3 of every shard; with `deep` each record's CRC32C and label too. Goes on after a damaged one.
///
/// # Errors
/// When there is no dataset or the store fails.
pub fn verify(url: &str, deep: bool) -> Result<Verification, DataError> {
    let store = Store::open(url)?;
    let manifest = Manifest::read(&store)?;
    let mut progress = Progress::new("shards", manifest.shards.len() as u64, false);
    let mut damaged = Vec::new();
    for facts in &manifest.shards {
        if let Err(source) = verify_shard(&store, &manifest, facts, deep)? {
            damaged.push(DataError::Shard { url: store.url_of(&facts.name), source });
        }
        progress.advance(1);
    }
    Ok(Verification { shards: manifest.shards.len(), records: manifest.num_samples, damaged })
}

fn verify_shard(
    store: &Store,
    manifest: &Manifest,
    facts: &ShardFacts,
    deep: bool,
) -> Result<Result<(), ShardError>, DataError> {
    let file = match store.get(&facts.name) {
        Err(error) if error.is_missing() => return Ok(Err(ShardError::Missing)),
        other => other?,
    };
    let checked = check_shard(&file, facts, manifest.moments_shape());
    Ok(checked.and_then(|layout| if deep { deep_check(&file, &layout, manifest.classes.len()) } else { Ok(()) }))
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
