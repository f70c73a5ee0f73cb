//! A complete shard in the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::open_shard::BadPicture;
use crate::format::facts::ShardFacts;

/// A complete shard in the store.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredShard {
    pub(super) shard: usize,
    pub(super) facts: ShardFacts,
    pub(super) class_counts: BTreeMap<u32, u64>,
    /// Pictures that were skipped.
    pub(super) bad: Vec<BadPicture>,
}
