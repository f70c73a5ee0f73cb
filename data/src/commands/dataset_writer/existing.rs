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

impl<E: RecordEncoder> Job<E> {
    /// Verifies every record of shard `shard` in the store.
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
            Ok(_) if !self.settings.overwrite => {
                return Err(EncodeError::ForeignShard { url: self.store.url_of(&name) });
            }
            Ok(_) => return Ok(Existing::Unusable("it belongs to another encode run".to_owned())),
            Err(error) => return Ok(Existing::Unusable(error.to_string())),
        };
        if let Err(error) = layout.check_records(&file) {
            return Ok(Existing::Unusable(error.to_string()));
        }
        let bad = match self.skipped(shard, &file, &layout) {
            Some(bad) if bad.is_empty() || self.settings.skip_bad => bad,
            Some(_) => return Ok(Existing::Unusable("pictures were left out of it with --skip-bad".to_owned())),
            None => return Ok(Existing::Unusable("it holds other pictures".to_owned())),
        };
        let facts =
            ShardFacts { name, bytes: file.len() as u64, count: layout.count() as u64, xxh3_128: xxh3_hex(&file) };
        Ok(Existing::Intact(StoredShard { shard, facts, class_counts: class_counts(&file, &layout), bad }))
    }

    /// Returns the pictures of the plan that the shard does not contain, or `None` if it contains other records.
    fn skipped(&self, shard: usize, file: &[u8], layout: &ShardLayout) -> Option<Vec<BadPicture>> {
        let mut bad = Vec::new();
        let mut record = 0;
        for &index in self.plan.pictures(shard) {
            let expected = (i64::from(self.encoder.pictures().label(index as usize)), i64::from(index));
            if record < layout.count() && layout.facts(file, record) == expected {
                record += 1;
            } else {
                bad.push(BadPicture {
                    source_id: index,
                    name: self.encoder.pictures().name(index as usize).to_owned(),
                    reason: "could not be used in an earlier run".to_owned(),
                });
            }
        }
        (record == layout.count()).then_some(bad)
    }
}

fn class_counts(file: &[u8], layout: &ShardLayout) -> BTreeMap<u32, u64> {
    let mut counts = BTreeMap::new();
    for record in 0..layout.count() {
        *counts.entry(layout.facts(file, record).0 as u32).or_default() += 1;
    }
    counts
}
