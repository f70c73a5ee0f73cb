//! Bytes to batches: pictures to latents to shards to an object store to training batches.

pub mod commands;
mod error;
pub mod format;
pub mod pictures;
mod progress;
pub mod random;
pub mod ranks;
pub mod read;
mod text;

pub use error::DataError;
