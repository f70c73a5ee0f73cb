//! The shards that one rank writes: rank r of w writes the shards r, r + w, r + 2w and so on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::encoder::RecordEncoder;
use super::error::EncodeError;
use super::existing::Existing;
use super::job::Job;
use super::open_shard::{BadPicture, OpenShard};
use super::stored_shard::StoredShard;
use crate::format::facts::ShardFacts;
use crate::format::hash::xxh3_hex;
use crate::format::names::shard_name;
use crate::progress::Progress;
use arinar_collective::WorkGroup;

/// Result of one rank.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Share {
    /// Shards that are complete and stored.
    pub(super) shards: Vec<StoredShard>,
    /// Unusable pictures in shards that were not stored because of them.
    pub(super) bad: Vec<BadPicture>,
    /// Number of pictures in shards that an earlier run stored.
    pub(super) kept: u64,
}

impl<E: RecordEncoder> Job<E> {
    /// Writes the shards of this rank that do not exist yet.
    pub(super) fn write_share(&self, ranks: &WorkGroup, progress: &mut Progress) -> Result<Share, EncodeError> {
        let mut share = Share::default();
        for shard in (ranks.rank()..self.plan.num_shards()).step_by(ranks.world_size()) {
            let outcome = match self.existing(shard)? {
                Existing::Intact(kept) => {
                    let pictures = self.plan.pictures(shard).len() as u64;
                    share.kept += pictures;
                    progress.keep(pictures);
                    ranks.report(pictures);
                    share.shards.push(kept);
                    continue;
                }
                Existing::Unusable(why) => {
                    progress.note(&format!("{}: {why}; making it again", self.store.url_of(&shard_name(shard))));
                    self.write_shard(shard, ranks, progress)?
                }
                Existing::None => self.write_shard(shard, ranks, progress)?,
            };
            match outcome {
                Outcome::Stored(stored) => share.shards.push(stored),
                Outcome::Bad(bad) => share.bad.extend(bad),
            }
        }
        Ok(share)
    }

    fn write_shard(&self, shard: usize, ranks: &WorkGroup, progress: &mut Progress) -> Result<Outcome, EncodeError> {
        let mut open = OpenShard::new(self.encoder.pictures(), self.shape, self.settings.skip_bad);
        self.encoder.fill(self.plan.pictures(shard), &mut open, &mut |processed| {
            progress.advance(processed);
            progress.advance(ranks.reported());
            ranks.report(processed);
        })?;
        let bad = std::mem::take(&mut open.bad);
        if !bad.is_empty() && !self.settings.skip_bad {
            return Ok(Outcome::Bad(bad));
        }
        let (name, count) = (shard_name(shard), open.count);
        let class_counts: BTreeMap<u32, u64> = std::mem::take(&mut open.class_counts);
        let file = open.finish(&self.plan.encode_id)?;
        let facts = ShardFacts { name: name.clone(), bytes: file.len() as u64, count, xxh3_128: xxh3_hex(&file) };
        self.store.put(&name, file)?;
        Ok(Outcome::Stored(StoredShard { shard, facts, class_counts, bad }))
    }
}

enum Outcome {
    Stored(StoredShard),
    Bad(Vec<BadPicture>),
}
