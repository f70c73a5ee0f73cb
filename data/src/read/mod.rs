//! Reading a dataset: from the local cache of shards to a rank's batches in the global order.

pub mod cache;
pub(crate) mod dataset;
mod latent;
pub(crate) mod loader;
pub(crate) mod order;
pub(crate) mod shuffle;
pub(crate) mod token;
pub(crate) mod tokenizer;

pub use dataset::Dataset;
pub use loader::{Batch, Loader, LoaderConfig, SampleKey};
pub use order::{MicroBatches, Place, Sharing};
pub use shuffle::{Shuffle, Window};
pub use token::{Position, ResumeToken};
pub use tokenizer::TokenizerError;
