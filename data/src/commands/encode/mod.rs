//! `arinar-data encode`: encodes pictures as a dataset of latents.
//!
//! `dataset_writer` describes how ranks share the work and how an interrupted run is resumed.

mod args;
mod decode_ahead;
mod encoder;
mod run;

pub use args::EncodeArgs;
pub use run::run;
