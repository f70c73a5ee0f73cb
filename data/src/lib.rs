//! Datasets of latents: encoding pictures, storing records in shards, and reading them as batches for training.
//!
//! [`commands`] contains the operations of the program `arinar-data`, which encode, convert, verify and simulate
//! datasets. [`sources`] lists input files and their classes, [`pictures`] decodes and crops pictures, [`mod@format`]
//! defines shards and manifests, [`read`] turns a dataset into the batches of a rank, and [`random`] generates all random
//! numbers of data and training. The crate does not contain the transfer of objects (`arinar-store`), the VAE (`arinar-model`) or the training loop
//! (`arinar-trainer`). Begin with [`read::Dataset`] and [`read::Loader`].
//!
//! ```
//! # use arinar_data::format::{FORMAT_VERSION, ImageFacts, Manifest, ShardFacts, ShardWriter, VaeFacts, xxh3_hex};
//! # use arinar_model::vae::VaeConfig;
//! # use arinar_store::Store;
//! use std::sync::Arc;
//!
//! use arinar_data::read::{BatchSource, Dataset, Loader, LoaderConfig, Position};
//!
//! # let folder = tempfile::tempdir()?;
//! # let url = folder.path().display().to_string();
//! # let store = Store::open(&url)?;
//! # let mut shard = ShardWriter::new([4, 2, 2]);
//! # (0..8).for_each(|record| shard.push(record % 2, record, &[0; 32], &[0; 32]));
//! # let file = shard.finish("example")?;
//! # let name = "shard-00000.safetensors".to_owned();
//! # store.put(&name, file.clone())?;
//! # let config = VaeConfig { ch: 32, ch_mult: vec![1, 1], num_res_blocks: 1, embed_dim: 2 };
//! # let manifest = Manifest {
//! #     version: FORMAT_VERSION,
//! #     dataset_id: "0123456789abcdef".to_owned(),
//! #     encode_id: "example".to_owned(),
//! #     seed: 1,
//! #     num_samples: 8,
//! #     num_sources: 8,
//! #     classes: vec!["cat".to_owned(), "dog".to_owned()],
//! #     class_counts: vec![4, 4],
//! #     image: ImageFacts { size: 4 },
//! #     vae: VaeFacts { config, xxh3_128: String::new(), scale: 1.0, channels: 2, stride: 2 },
//! #     skipped: Vec::new(),
//! #     shards: vec![ShardFacts { name, bytes: file.len() as u64, count: 8, xxh3_128: xxh3_hex(&file) }],
//! # };
//! # manifest.write(&store)?;
//! // `url` is a folder or an s3://, gs:// or az:// URL with a dataset of 8 samples and latents of [2, 2, 2].
//! let dataset = Arc::new(Dataset::open(&url)?);
//! let config = LoaderConfig {
//!     seed: 1,
//!     global_batch: 4,
//!     rank: 0,
//!     world_size: 1,
//!     micro_batch: 4,
//!     look_ahead: 2,
//!     window: dataset.shuffle_window(None)?,
//!     prefetch: true,
//! };
//! let mut loader = Loader::new(dataset, config, Position::default())?;
//! let batch = loader.next_batch()?;
//! assert_eq!(batch.latents.size(), [4, 2, 2, 2]);
//! assert_eq!(loader.position().position, 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod byte_size;
mod command_line;
pub mod commands;
mod error;
pub mod format;
mod output_error;
pub mod pictures;
mod progress;
pub mod random;
pub mod read;
mod reporter;
pub mod sources;
mod text;

pub use byte_size::parse_bytes;
pub use command_line::answer_without_command;
pub use error::DataError;
pub use output_error::OutputError;
pub use progress::Progress;
pub use reporter::Reporter;
