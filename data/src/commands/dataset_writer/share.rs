//! A rank's share of the work: every world-th shard.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::existing::Existing;
use super::{EncodeError, Job, Maker};
use crate::format::manifest::{ShardFacts, shard_name};
use crate::format::shard::{ShardWriter, xxh3_hex};
use crate::progress::Progress;
use crate::ranks::Ranks;

/// What a rank has done.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Share {
    /// Its shards, whole and stored.
    pub(crate) shards: Vec<StoredShard>,
    /// Pictures that cannot be used, in shards that were therefore not made.
    pub(crate) bad: Vec<BadPicture>,
    /// Pictures in shards that an earlier run had made.
    pub(crate) kept: u64,
}

/// A shard in the store.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredShard {
    pub(crate) shard: usize,
    pub(crate) facts: ShardFacts,
    pub(crate) class_counts: BTreeMap<u32, u64>,
    /// Pictures left out of it.
    pub(crate) bad: Vec<BadPicture>,
}

/// A picture that cannot be used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BadPicture {
    pub(crate) source_id: u32,
    pub(crate) name: String,
    pub(crate) reason: String,
}

impl<M: Maker> Job<M> {
    /// Makes the shards of this rank that are not there yet.
    pub(super) fn make_share(&self, ranks: &Ranks, progress: &mut Progress) -> Result<Share, EncodeError> {
        let mut share = Share::default();
        for shard in (ranks.rank()..self.plan.num_shards()).step_by(ranks.world()) {
            let made = match self.existing(shard)? {
                Existing::Whole(kept) => {
                    let pictures = self.plan.pictures(shard).len() as u64;
                    share.kept += pictures;
                    progress.keep(pictures);
                    ranks.report(pictures);
                    share.shards.push(kept);
                    continue;
                }
                Existing::Unusable(why) => {
                    progress.note(&format!("{}: {why}; making it again", self.store.url_of(&shard_name(shard))));
                    self.make_shard(shard, ranks, progress)?
                }
                Existing::None => self.make_shard(shard, ranks, progress)?,
            };
            match made {
                Made::Stored(made) => share.shards.push(made),
                Made::Bad(bad) => share.bad.extend(bad),
            }
        }
        Ok(share)
    }

    fn make_shard(&self, shard: usize, ranks: &Ranks, progress: &mut Progress) -> Result<Made, EncodeError> {
        let mut open = OpenShard {
            maker: &self.maker,
            skip_bad: self.recipe.skip_bad,
            writer: ShardWriter::new(self.shape),
            class_counts: BTreeMap::new(),
            count: 0,
            bad: Vec::new(),
        };
        self.maker.fill(self.plan.pictures(shard), &mut open, &mut |handled| {
            progress.advance(handled);
            progress.advance(ranks.reported());
            ranks.report(handled);
        })?;
        let OpenShard { writer, class_counts, count, bad, .. } = open;
        if !bad.is_empty() && !self.recipe.skip_bad {
            return Ok(Made::Bad(bad));
        }
        let name = shard_name(shard);
        let file = writer.finish(&self.plan.encode_id)?;
        let facts = ShardFacts { name: name.clone(), bytes: file.len() as u64, count, xxh3_128: xxh3_hex(&file) };
        self.store.put(&name, file)?;
        Ok(Made::Stored(StoredShard { shard, facts, class_counts, bad }))
    }
}

/// A shard that is being filled.
pub(crate) struct OpenShard<'a> {
    maker: &'a dyn Maker,
    skip_bad: bool,
    writer: ShardWriter,
    class_counts: BTreeMap<u32, u64>,
    count: u64,
    bad: Vec<BadPicture>,
}

impl OpenShard<'_> {
    /// Whether it will be stored: without --skip-bad a shard with a bad picture is not, and the rest of its pictures
    /// are only looked at.
    pub(crate) fn wanted(&self) -> bool {
        self.bad.is_empty() || self.skip_bad
    }

    /// Appends the record of picture `index`; both views are f16 moments [2C, H, W] as little-endian bytes.
    pub(crate) fn push(&mut self, index: u32, original: &[u8], mirrored: &[u8]) {
        let label = self.maker.pictures().label(index as usize);
        self.writer.push(i64::from(label), i64::from(index), original, mirrored);
        *self.class_counts.entry(label).or_default() += 1;
        self.count += 1;
    }

    /// Notes a picture that cannot be used.
    pub(crate) fn leave_out(&mut self, index: u32, reason: String) {
        let name = self.maker.pictures().name(index as usize).to_owned();
        self.bad.push(BadPicture { source_id: index, name, reason });
    }
}

enum Made {
    Stored(StoredShard),
    Bad(Vec<BadPicture>),
}
