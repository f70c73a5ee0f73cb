//! The commands of `arinar-data`.

pub mod bench;
pub mod convert;
mod dataset_writer;
pub mod encode;
pub mod inspect;
mod repair;
pub mod simulate;
pub mod train_vae;
pub mod verify;

pub use dataset_writer::error::EncodeError;
