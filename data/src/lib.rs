//! Bytes to batches: pictures to latents to shards to an object store to training batches.

pub mod commands;
mod error;
pub mod format;
pub mod pictures;
pub mod random;
pub mod ranks;
pub mod read;
mod reporter;
mod text;

pub use error::DataError;
pub use reporter::Reporter;
