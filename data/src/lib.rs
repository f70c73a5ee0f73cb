//! Bytes to batches: pictures to latents to shards to an object store to training batches.

pub mod bench;
pub mod cache;
pub mod convert;
pub mod crop;
pub mod dataset;
pub mod decode;
pub mod encode;
pub mod error;
pub mod inspect;
mod latent;
pub mod loader;
mod making;
pub mod manifest;
mod mapped;
pub mod order;
mod progress;
pub mod random;
pub mod repair;
pub mod shard;
pub mod shuffle;
pub mod simulate;
pub mod source;
pub mod token;
pub mod tokenizer;
pub mod train_vae;
pub mod verify;
