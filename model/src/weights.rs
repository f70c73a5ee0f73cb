//! Weights in and out as safetensors under the official names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Device, Kind, Tensor, nn};
use thiserror::Error;

/// How many names of each sort an error's one line spells out; the rest is counted.
const NAMES_SHOWN: usize = 4;

/// Start of every name of the inner head.
pub const HEAD_PREFIX: &str = "arhead.";

/// What is wrong with a weights file.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// The file cannot be read or written.
    #[error("weights {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is no complete safetensors file.
    #[error("weights {}: not a complete safetensors file ({reason}); convert or download it again", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// An entry of the file's metadata does not parse.
    #[error("weights {}: metadata {key:?}: {reason}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Metadata key.
        key: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// A tensor is stored in a type that weights never have.
    #[error("weights {}: tensor {name} is stored as {dtype}; convert it to F32, F16 or BF16", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// Tensor name.
        name: String,
        /// Its safetensors type.
        dtype: String,
    },
    /// The tensors are not those of the model.
    #[error("weights {}: made for another model: {mismatch}; use the configuration they were trained with", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Every difference.
        mismatch: Mismatch,
    },
    /// A tensor to be saved has a type that safetensors does not know.
    #[error("weights {}: tensor {name} of kind {kind:?} cannot be saved; convert it to float first", path.display())]
    Unsavable {
        /// The file.
        path: PathBuf,
        /// Tensor name.
        name: String,
        /// Its kind.
        kind: Kind,
    },
}

impl WeightsError {
    pub(crate) fn metadata(path: &Path, key: &str, reason: impl ToString) -> Self {
        Self::Metadata { path: path.to_owned(), key: key.to_owned(), reason: reason.to_string() }
    }

    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    fn format(path: &Path, reason: impl ToString) -> Self {
        Self::Format { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Every difference between the tensors of a file and those of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mismatch {
    /// Names the model has and the file lacks.
    pub missing: Vec<String>,
    /// Names the file has and the model does not know.
    pub unexpected: Vec<String>,
    /// Names of both with their shapes in the file and in the model.
    pub misshapen: Vec<(String, Vec<i64>, Vec<i64>)>,
}

impl Mismatch {
    fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let misshapen: Vec<String> = self
            .misshapen
            .iter()
            .map(|(name, found, expected)| format!("{name} is {found:?} where the model has {expected:?}"))
            .collect();
        let parts: Vec<String> =
            [("wrong shape: ", &misshapen), ("missing: ", &self.missing), ("unexpected: ", &self.unexpected)]
                .into_iter()
                .filter(|(_, names)| !names.is_empty())
                .map(|(title, names)| format!("{title}{}", shortened(names)))
                .collect();
        formatter.write_str(&parts.join("; "))
    }
}

fn shortened(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMES_SHOWN)].join(", ");
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Reads a whole weights file.
///
/// # Errors
/// [`WeightsError::Io`].
pub fn read(path: &Path) -> Result<Vec<u8>, WeightsError> {
    fs::read(path).map_err(|source| WeightsError::io(path, source))
}

/// The free text entries of a safetensors file; `path` is for the error only.
///
/// # Errors
/// [`WeightsError::Format`].
pub fn metadata(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>, WeightsError> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|source| WeightsError::format(path, source))?;
    Ok(header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// Fills `variables` from a file; see [`load_bytes`].
///
/// # Errors
/// As [`read`] and [`load_bytes`].
pub fn load(path: &Path, variables: &BTreeMap<String, Tensor>) -> Result<(), WeightsError> {
    load_bytes(path, &read(path)?, variables)
}

/// Fills `variables` from the bytes of a safetensors file, converting f16 and bf16 to the variables' kind.
///
/// # Errors
/// When the bytes are no safetensors file or its names and shapes are not exactly those of `variables`; then
/// no variable is changed.
pub fn load_bytes(path: &Path, bytes: &[u8], variables: &BTreeMap<String, Tensor>) -> Result<(), WeightsError> {
    let file = SafeTensors::deserialize(bytes).map_err(|source| WeightsError::format(path, source))?;
    let stored: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    let mismatch = compare(&stored, variables);
    if !mismatch.is_empty() {
        return Err(WeightsError::Mismatch { path: path.to_owned(), mismatch });
    }
    let kinds = stored.iter().map(|(name, view)| float_kind(path, name, view)).collect::<Result<Vec<_>, _>>()?;
    tch::no_grad(|| {
        for ((view, variable), kind) in stored.values().zip(variables.values()).zip(kinds) {
            variable.shallow_clone().copy_(&Tensor::from_data_size(view.data(), &shape(view), kind));
        }
    });
    Ok(())
}

fn compare(stored: &BTreeMap<String, TensorView<'_>>, variables: &BTreeMap<String, Tensor>) -> Mismatch {
    let mut mismatch = Mismatch::default();
    let names: BTreeSet<&String> = stored.keys().chain(variables.keys()).collect();
    for name in names {
        match (stored.get(name), variables.get(name)) {
            (Some(view), Some(variable)) if shape(view) != variable.size() => {
                mismatch.misshapen.push((name.clone(), shape(view), variable.size()));
            }
            (None, Some(_)) => mismatch.missing.push(name.clone()),
            (Some(_), None) => mismatch.unexpected.push(name.clone()),
            _ => {}
        }
    }
    mismatch
}

fn shape(view: &TensorView<'_>) -> Vec<i64> {
    view.shape().iter().map(|&length| length as i64).collect()
}

fn float_kind(path: &Path, name: &str, view: &TensorView<'_>) -> Result<Kind, WeightsError> {
    match view.dtype() {
        Dtype::F16 => Ok(Kind::Half),
        Dtype::BF16 => Ok(Kind::BFloat16),
        Dtype::F32 => Ok(Kind::Float),
        dtype => Err(WeightsError::Dtype { path: path.to_owned(), name: name.to_owned(), dtype: format!("{dtype:?}") }),
    }
}

/// Writes `tensors` and `metadata`; the same content gives the same bytes. The file appears whole or not at
/// all: it is written under a temporary name in the same folder, synced and renamed.
///
/// # Errors
/// When the file cannot be written or a tensor has no safetensors type.
pub fn save(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let header = header(path, tensors, metadata)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = write(&temporary, &header, tensors).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| {
        // The first failure is the one to tell; the left-over may not even exist.
        let _ = fs::remove_file(&temporary);
        WeightsError::io(path, source)
    })
}

/// The length-prefixed JSON header. Written here, not by the safetensors crate, because that one writes
/// metadata in the random order of a `HashMap` and equal weights would have unequal hashes.
fn header(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, WeightsError> {
    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    let mut offset = 0;
    for (name, tensor) in in_file_order(tensors) {
        let end = offset + tensor.numel() * tensor.kind().elt_size_in_bytes();
        let dtype = dtype_name(path, name, tensor.kind())?;
        let entry = serde_json::json!({"dtype": dtype, "shape": tensor.size(), "data_offsets": [offset, end]});
        entries.insert(name.clone(), entry);
        offset = end;
    }
    let mut json = serde_json::Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([(json.len() as u64).to_le_bytes().as_slice(), &json].concat())
}

/// Wide elements first, so that every tensor is aligned for readers that map the file.
fn in_file_order(tensors: &BTreeMap<String, Tensor>) -> Vec<(&String, &Tensor)> {
    let mut ordered: Vec<_> = tensors.iter().collect();
    ordered.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.kind().elt_size_in_bytes()));
    ordered
}

fn dtype_name(path: &Path, name: &str, kind: Kind) -> Result<&'static str, WeightsError> {
    match kind {
        Kind::Half => Ok("F16"),
        Kind::BFloat16 => Ok("BF16"),
        Kind::Float => Ok("F32"),
        Kind::Double => Ok("F64"),
        Kind::Int64 => Ok("I64"),
        Kind::Uint8 => Ok("U8"),
        _ => Err(WeightsError::Unsavable { path: path.to_owned(), name: name.to_owned(), kind }),
    }
}

fn write(path: &Path, header: &[u8], tensors: &BTreeMap<String, Tensor>) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(header)?;
    for (_, tensor) in in_file_order(tensors) {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel()).map_err(io::Error::other)?;
        file.write_all(&bytes)?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

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
#[path = "weights_tests.rs"]
mod tests;
