//! Reading a dataset: from the local cache of shards to the batches of a rank in the global order.

pub(crate) mod batch_layout;
pub(crate) mod batch_source;
pub mod cache;
pub(crate) mod dataset;
mod latent;
mod loader;
mod lock;
mod order;
mod prefetch;
pub(crate) mod shuffle;
mod synthetic;
mod token;
pub(crate) mod tokenizer;

pub use batch_layout::{BatchLayout, BatchShare};
pub use batch_source::{Batch, BatchSource, SampleKey};
pub use dataset::Dataset;
pub use loader::{Loader, LoaderConfig};
pub use order::{MicroBatches, ScheduledSample};
pub use shuffle::{Shuffle, Window};
pub use synthetic::{SyntheticConfig, SyntheticSource, synthetic_id, synthetic_samples};
pub use token::{Position, ResumeToken};
pub use tokenizer::TokenizerError;
