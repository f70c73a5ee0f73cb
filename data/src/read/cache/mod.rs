//! A cache of a remote dataset's shards on local disk, shared by all ranks and jobs of a node.
//!
//! `FOLDER/arinar-cache.json` marks a folder as a cache (see `ownership.rs`); a folder with other contents is rejected.
//! `FOLDER/DATASET-ID/SHARD` is a complete, verified shard. It is downloaded as `SHARD.part` under an exclusive lock on
//! that file, so that one of the processes that need it downloads it and the others wait, then verified and renamed. A
//! process that has a shard open holds a shared lock on it, and only files without a lock are evicted. All locks are
//! flock locks of the kernel, which end with the process that holds them.

pub(crate) mod config;
mod fetch;
mod folder;
mod open;
mod ownership;
mod room;
pub(crate) mod shard_cache;
pub(crate) mod window;

pub use config::{CacheConfig, default_cache};
pub use ownership::probe;
pub use window::{choose_window, largest_window, needed_bytes};
