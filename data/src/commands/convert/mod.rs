//! `arinar-data convert`: converts latents that the official code has cached to a dataset.
//!
//! `main_cache.py` of LTH14/mar writes one .npz file per picture below class folders, with arrays `moments` and
//! `moments_flip` of [2C, H, W] float32. The pictures keep their names, so that they are distributed over the shards as
//! `encode` distributes the pictures themselves.

mod args;
pub(crate) mod error;
mod npz;
mod run;

pub use args::ConvertArgs;
pub use error::ConvertError;
pub use npz::{NpzError, read_moments};
pub use run::run;
