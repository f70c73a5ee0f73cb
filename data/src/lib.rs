//! Bytes to batches: pictures to latents to shards to an object store to training batches.

pub mod cache;
pub mod crop;
pub mod dataset;
pub mod decode;
pub mod encode;
pub mod error;
pub mod inspect;
mod latent;
pub mod loader;
pub mod manifest;
mod mapped;
pub mod object;
pub mod order;
mod progress;
pub mod random;
pub mod ranks;
pub mod shard;
pub mod shuffle;
pub mod source;
pub mod store;
pub mod token;
pub mod tokenizer;
pub mod train_vae;
pub mod verify;
