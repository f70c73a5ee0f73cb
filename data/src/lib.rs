//! Bytes to batches: pictures to latents to shards to an object store to training batches.

pub mod crop;
pub mod decode;
pub mod error;
pub mod manifest;
pub mod random;
pub mod shard;
pub mod source;
pub mod store;
pub mod train_vae;
