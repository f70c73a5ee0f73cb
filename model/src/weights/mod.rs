//! Weights in and out under the official names: safetensors both ways, and PyTorch's own files in.

mod checkpoint;
mod error;
mod load;
mod save;

use std::collections::BTreeMap;

use tch::{Tensor, nn};

pub use checkpoint::WeightsFile;
pub use error::{Mismatch, WeightsError};
pub(crate) use load::{Stored, fill};
pub use load::{header_of, load, load_bytes, metadata, read};
pub use save::{save, serialize};

/// Start of every name of the inner head.
pub const HEAD_PREFIX: &str = "arhead.";

/// All variables and buffers of a store, sorted by name: the store itself hands them out in random order.
pub fn named(store: &nn::VarStore) -> BTreeMap<String, Tensor> {
    store.variables().into_iter().collect()
}

/// The trainable parameters of a store, sorted by name (no buffers, nothing frozen).
pub fn trainable(store: &nn::VarStore) -> Vec<(String, Tensor)> {
    named(store).into_iter().filter(|(_, tensor)| tensor.requires_grad()).collect()
}

/// Whether weight decay applies to a parameter: not to one-dimensional ones, biases and the inner head
/// (official `util/misc.py`, `add_weight_decay`).
pub fn decays(name: &str, shape: &[i64]) -> bool {
    shape.len() > 1 && !name.ends_with(".bias") && !name.starts_with(HEAD_PREFIX)
}

#[cfg(test)]
mod tests;
