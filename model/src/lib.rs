//! ARINAR's tensor code: the tokenizer, the outer and the inner autoregressive layer, and every schedule
//! (arXiv 2503.02883). No ranks, no environment, no files but weights.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod arinar;
mod attention;
pub mod config;
pub mod flops;
pub mod gmm;
pub mod guidance;
pub mod head;
mod init;
mod linear;
pub mod mask;
pub mod outer;
mod pickle;
pub mod precision;
pub mod sampling;
pub mod schedule;
pub mod text;
pub mod vae;
pub mod weights;

pub use arinar::Arinar;
pub use config::ModelConfig;
pub use precision::Precision;
pub use sampling::SampleOptions;
