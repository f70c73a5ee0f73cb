//! The distribution of pictures over shards: a pure function of pictures and settings, so that any rank can write any
//! shard and an interrupted run can be resumed.

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use super::picture_list::PictureList;
use super::settings::DatasetSettings;
use crate::format::manifest::FORMAT_VERSION;
use crate::format::shard::{HASH_BYTES, record_bytes};
use crate::random::{Purpose, global_order};

/// Minimum number of shards, so that ranks share the work and an interrupted run loses little. Shards with fewer than
/// [`MIN_RECORDS`] records are not split further.
const MIN_SHARDS: usize = 16;
/// Minimum number of records in a shard of a small dataset.
const MIN_RECORDS: usize = 32;

/// Distribution of all pictures over shards.
#[derive(Debug)]
pub(crate) struct ShardPlan {
    /// Identity of the pictures and the settings.
    pub(crate) encode_id: String,
    order: Vec<u32>,
    per_shard: usize,
}

impl ShardPlan {
    pub(crate) fn new(pictures: &dyn PictureList, settings: &DatasetSettings, shape: [usize; 3]) -> Self {
        let per_shard = records_per_shard(pictures.len(), record_bytes(shape) + HASH_BYTES, settings.shard_bytes);
        let order = global_order(settings.seed, 0, Purpose::ShardOrder, pictures.len());
        Self { encode_id: encode_id(pictures, settings, per_shard), order, per_shard }
    }

    pub(crate) fn num_shards(&self) -> usize {
        self.order.len().div_ceil(self.per_shard)
    }

    /// Returns the pictures of a shard, as indices into the sorted list, in the order of its records.
    pub(crate) fn pictures(&self, shard: usize) -> &[u32] {
        &self.order[range(shard, self.per_shard, self.order.len())]
    }
}

fn range(shard: usize, per_shard: usize, total: usize) -> Range<usize> {
    shard * per_shard..((shard + 1) * per_shard).min(total)
}

/// Returns the number of records in each shard except the last, which has the remaining ones: as many as fit into
/// `shard_bytes`, distributed evenly.
fn records_per_shard(total: usize, record_bytes: usize, shard_bytes: u64) -> usize {
    let room = (shard_bytes / record_bytes as u64).max(1) as usize;
    let limit = room.min(total.div_ceil(MIN_SHARDS).max(MIN_RECORDS));
    total.div_ceil(total.div_ceil(limit))
}

fn encode_id(pictures: &dyn PictureList, settings: &DatasetSettings, per_shard: usize) -> String {
    let mut hash = Xxh3::new();
    let mut add = |text: &str| {
        hash.update(text.as_bytes());
        hash.update(b"\n");
    };
    add(&format!("format {FORMAT_VERSION}, image size {}, seed {}", settings.image_size, settings.seed));
    add(&format!("{per_shard} records per shard, vae {}, scale {}", settings.vae.xxh3_128, settings.vae.scale));
    settings.kind.iter().for_each(|kind| add(kind));
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
