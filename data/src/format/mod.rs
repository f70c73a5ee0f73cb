//! The dataset format: shards of records, and the manifest that lists them.

pub(crate) mod manifest;
pub(crate) mod mapped;
pub(crate) mod shard;

pub use manifest::{FORMAT_VERSION, ImageFacts, MANIFEST_NAME, Manifest, ShardFacts, VaeFacts};
pub use mapped::MappedShard;
pub use shard::{Record, ShardError, ShardLayout, ShardWriter, View, check_shard, xxh3_hex};
