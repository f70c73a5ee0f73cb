//! The dataset format: shards of records, and the manifest that lists them.

pub(crate) mod facts;
pub(crate) mod hash;
pub(crate) mod manifest;
pub(crate) mod mapped;
pub(crate) mod names;
pub(crate) mod shard;

pub use facts::{ImageFacts, ShardFacts, VaeFacts};
pub use hash::xxh3_hex;
pub use manifest::{FORMAT_VERSION, Manifest};
pub use mapped::MappedShard;
pub use names::MANIFEST_NAME;
pub use shard::{Record, ShardError, ShardLayout, ShardWriter, View, check_shard};
