//! Shards of an earlier run: they are kept if they are intact and belong to this run.

use std::collections::BTreeMap;

use super::encoder::RecordEncoder;
use super::error::EncodeError;
use super::job::Job;
use super::open_shard::BadPicture;
use super::stored_shard::StoredShard;
use crate::format::facts::ShardFacts;
use crate::format::hash::xxh3_hex;
use crate::format::names::shard_name;
use crate::format::shard::ShardLayout;

/// State of a shard in the store.
pub(super) enum Existing {
    /// The shard does not exist.
    None,
    /// The shard can be kept.
    Intact(StoredShard),
    /// The shard must be written again for this reason.
    Unusable(String),
}

/// Difference between a shard and the pictures of the plan.
enum Difference {
    /// It has other records.
    Records,
    /// The contents of pictures have changed, or are not recorded.
    Contents(String),
}

impl<E: RecordEncoder> Job<E> {
    /// Verifies every record of shard `shard` in the store, and that its pictures have not changed.
    ///
    /// # Errors
    /// Returns an error if the shard must not be replaced: it belongs to another dataset, or to a complete dataset of
    /// pictures that have changed since.
    pub(super) fn existing(&self, shard: usize) -> Result<Existing, EncodeError> {
        let name = shard_name(shard);
        let file = match self.store.get(&name) {
            Ok(file) => file,
            Err(error) if error.is_missing() => return Ok(Existing::None),
            Err(error) => return Err(error.into()),
        };
        if !self.earlier.owns_shard(&self.store, &name)? {
            return Err(EncodeError::ForeignFile { url: self.store.url_of(&name), what: "a shard" });
        }
        let layout = match ShardLayout::parse(&file, self.shape) {
            Ok(layout) if layout.encode_id() == self.plan.encode_id => layout,
            Ok(_) => return Err(EncodeError::ForeignShard { url: self.store.url_of(&name) }),
            Err(error) => return Ok(Existing::Unusable(error.to_string())),
        };
        if let Err(error) = layout.check_records(&file) {
            return Ok(Existing::Unusable(error.to_string()));
        }
        let bad = match self.skipped(shard, &file, &layout) {
            Ok(bad) => bad,
            Err(Difference::Contents(why)) if self.earlier.is_complete() => {
                return Err(EncodeError::ChangedPictures { url: self.store.url().to_owned(), why });
            }
            Err(Difference::Contents(why)) => return Ok(Existing::Unusable(why)),
            Err(Difference::Records) => return Ok(Existing::Unusable("it holds other pictures".to_owned())),
        };
        if !bad.is_empty() && !self.settings.skip_bad {
            return Ok(Existing::Unusable("pictures were left out of it with --skip-bad".to_owned()));
        }
        if let Some(usable) = bad.iter().find(|bad| self.encoder.check(bad.source_id).is_ok()) {
            return Ok(Existing::Unusable(format!("{} was left out of it and can be used now", usable.name)));
        }
        let facts =
            ShardFacts { name, bytes: file.len() as u64, count: layout.count() as u64, xxh3_128: xxh3_hex(&file) };
        Ok(Existing::Intact(StoredShard { shard, facts, class_counts: class_counts(&file, &layout), bad }))
    }

    /// Returns the pictures of the plan that the shard does not contain. All others must be as they were.
    fn skipped(&self, shard: usize, file: &[u8], layout: &ShardLayout) -> Result<Vec<BadPicture>, Difference> {
        let mut bad = Vec::new();
        let mut record = 0;
        for &index in self.plan.pictures(shard) {
            let expected = (i64::from(self.encoder.pictures().label(index as usize)), i64::from(index));
            if record < layout.count() && layout.facts(file, record) == expected {
                self.compare_contents(index, layout.content(file, record))?;
                record += 1;
            } else {
                bad.push(BadPicture {
                    source_id: index,
                    name: self.encoder.pictures().name(index as usize).into_owned(),
                    reason: "could not be used in an earlier run".to_owned(),
                });
            }
        }
        if record == layout.count() { Ok(bad) } else { Err(Difference::Records) }
    }

    /// Compares the file of a picture with its hash in the shard.
    fn compare_contents(&self, index: u32, recorded: Option<u128>) -> Result<(), Difference> {
        let name = || self.encoder.pictures().name(index as usize);
        let why = match (recorded, self.encoder.content_hash(index)) {
            (Some(recorded), Ok(found)) if recorded == found => return Ok(()),
            (Some(_), Ok(_)) => format!("{} has changed since", name()),
            (Some(_), Err(reason)) => format!("{} {reason}", name()),
            (None, _) => "it was made by an earlier version, which did not record the contents of pictures".to_owned(),
        };
        Err(Difference::Contents(why))
    }
}

fn class_counts(file: &[u8], layout: &ShardLayout) -> BTreeMap<u32, u64> {
    let mut counts = BTreeMap::new();
    for record in 0..layout.count() {
        *counts.entry(layout.facts(file, record).0 as u32).or_default() += 1;
    }
    counts
}
