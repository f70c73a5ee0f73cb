//! Which picture goes into which shard: a pure function of the pictures and the settings, so that any rank can make
//! any shard, and a run that was killed can go on.

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use super::{Pictures, Recipe};
use crate::format::manifest::FORMAT_VERSION;
use crate::format::shard::record_bytes;
use crate::random::{Purpose, global_order};

/// A small dataset is cut in at least this many shards, so that ranks share the work and a killed run loses little,
const SHARDS_AT_LEAST: usize = 16;
/// as long as its shards hold at least this many records.
const RECORDS_AT_LEAST: usize = 32;

/// The division of all pictures into shards.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Identity of pictures and settings.
    pub(crate) encode_id: String,
    order: Vec<u32>,
    per_shard: usize,
}

impl Plan {
    pub(crate) fn new(pictures: &dyn Pictures, recipe: &Recipe, shape: [usize; 3]) -> Self {
        let per_shard = records_per_shard(pictures.len(), record_bytes(shape), recipe.shard_bytes);
        let order = global_order(recipe.seed, 0, Purpose::ShardOrder, pictures.len());
        Self { encode_id: encode_id(pictures, recipe, per_shard), order, per_shard }
    }

    pub(crate) fn num_shards(&self) -> usize {
        self.order.len().div_ceil(self.per_shard)
    }

    /// Pictures of a shard, as indices into the sorted list, in the order of its records.
    pub(crate) fn pictures(&self, shard: usize) -> &[u32] {
        &self.order[range(shard, self.per_shard, self.order.len())]
    }
}

fn range(shard: usize, per_shard: usize, total: usize) -> Range<usize> {
    shard * per_shard..((shard + 1) * per_shard).min(total)
}

/// Records of each shard but the last, which has the rest: as many as `shard_bytes` has room for, spread evenly.
fn records_per_shard(total: usize, record_bytes: usize, shard_bytes: u64) -> usize {
    let room = (shard_bytes / record_bytes as u64).max(1) as usize;
    let limit = room.min(total.div_ceil(SHARDS_AT_LEAST).max(RECORDS_AT_LEAST));
    total.div_ceil(total.div_ceil(limit))
}

fn encode_id(pictures: &dyn Pictures, recipe: &Recipe, per_shard: usize) -> String {
    let mut hash = Xxh3::new();
    let mut add = |text: &str| {
        hash.update(text.as_bytes());
        hash.update(b"\n");
    };
    add(&format!("format {FORMAT_VERSION}, image size {}, seed {}", recipe.image_size, recipe.seed));
    add(&format!("{per_shard} records per shard, vae {}, scale {}", recipe.vae.xxh3_128, recipe.vae.scale));
    recipe.kind.iter().for_each(|kind| add(kind));
    pictures.classes().iter().for_each(|class| add(class));
    for index in 0..pictures.len() {
        add(&format!("{} {}", pictures.label(index), pictures.name(index)));
    }
    format!("{:032x}", hash.digest128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_even_and_neither_too_large_nor_too_few() {
        // The embedded dataset: 1,906 records of 2 KiB.
        assert_eq!(records_per_shard(1906, 2072, 64 << 20), 120);
        // ImageNet: 1,281,167 records of 32 KiB in shards of at most 64 MiB.
        let per_shard = records_per_shard(1_281_167, 65_560, 64 << 20);
        assert!(per_shard <= (64 << 20) / 65_560 && per_shard > 1000, "{per_shard}");
        assert_eq!(records_per_shard(10, 2072, 64 << 20), 10);
        assert_eq!(records_per_shard(10, 2072, 1), 1);
        for (total, limit) in [(1, 1), (33, 10_000), (64, 70_000)] {
            let per_shard = records_per_shard(total, 2072, limit);
            let last = range(total.div_ceil(per_shard) - 1, per_shard, total);
            assert!(!last.is_empty() && last.end == total);
        }
    }
}
