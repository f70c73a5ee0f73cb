//! Loading and saving weights under their official names. Safetensors files are read and written, PyTorch files are
//! read.

mod checkpoint;
mod error;
mod file_kind;
mod load;
mod pickle;
mod save;
mod state_dict;

use std::collections::BTreeMap;

use tch::{Tensor, nn};

pub use checkpoint::WeightsFile;
pub use error::{Mismatch, WeightsError};
pub use file_kind::{OtherKind, START_BYTES, recognize};
pub(crate) use load::{fill_selected, load_bytes};
pub use load::{header_of, load, metadata, read};
pub use save::{save, serialize};
pub(crate) use state_dict::Section;

/// Prefix of the names of the inner layer's parameters.
pub const HEAD_PREFIX: &str = "arhead.";

/// Returns all variables and buffers of a store, sorted by name; the store itself returns them in random order.
pub fn named(store: &nn::VarStore) -> BTreeMap<String, Tensor> {
    store.variables().into_iter().collect()
}

/// Returns the trainable parameters of a store, sorted by name, without buffers and frozen parameters.
pub fn trainable(store: &nn::VarStore) -> Vec<(String, Tensor)> {
    named(store).into_iter().filter(|(_, tensor)| tensor.requires_grad()).collect()
}

/// Returns true if weight decay applies to a parameter. It does not apply to one-dimensional parameters, biases and the
/// inner layer (`add_weight_decay` in the official `util/misc.py`).
pub fn decays(name: &str, shape: &[i64]) -> bool {
    shape.len() > 1 && !name.ends_with(".bias") && !name.starts_with(HEAD_PREFIX)
}

#[cfg(test)]
mod tests;
