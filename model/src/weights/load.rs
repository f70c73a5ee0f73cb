//! Loading: copies tensors from a file into the variables of a model after checking all names and shapes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use tch::{Kind, Tensor};

use super::error::{Mismatch, WeightsError};
use super::file_kind::{self, START_BYTES};
use super::state_dict::{Section, select};

/// A tensor in a file.
pub(crate) trait Stored {
    /// Returns the sizes, outermost dimension first.
    fn shape(&self) -> Vec<i64>;

    /// Returns the kind of a floating-point tensor, or the name of the type as an error.
    fn float_kind(&self) -> Result<Kind, String>;

    /// Returns the values in row-major order, little endian. Called only after the shape has been checked.
    fn bytes(&self) -> Result<Cow<'_, [u8]>, String>;
}

impl Stored for TensorView<'_> {
    fn shape(&self) -> Vec<i64> {
        TensorView::shape(self).iter().map(|&length| length as i64).collect()
    }

    fn float_kind(&self) -> Result<Kind, String> {
        match self.dtype() {
            Dtype::F16 => Ok(Kind::Half),
            Dtype::BF16 => Ok(Kind::BFloat16),
            Dtype::F32 => Ok(Kind::Float),
            Dtype::F64 => Ok(Kind::Double),
            dtype => Err(format!("{dtype:?}")),
        }
    }

    fn bytes(&self) -> Result<Cow<'_, [u8]>, String> {
        Ok(self.data().into())
    }
}

/// Reads a weights file into memory.
///
/// # Errors
/// Returns [`WeightsError::Io`] if the file cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, WeightsError> {
    fs::read(path).map_err(|source| WeightsError::io(path, source))
}

/// Returns the metadata of a safetensors file; `path` is only used in errors.
///
/// # Errors
/// Returns [`WeightsError::NotWeights`] or [`WeightsError::Format`] if the header is invalid.
pub fn metadata(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>, WeightsError> {
    let header = SafeTensors::read_metadata(bytes);
    let (_, header) = header.map_err(|error| not_safetensors(path, bytes, &error))?;
    Ok(header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// Explains why the contents of a file are not valid safetensors.
fn not_safetensors(path: &Path, bytes: &[u8], error: &SafeTensorError) -> WeightsError {
    if let Some(kind) = file_kind::recognize(&bytes[..bytes.len().min(START_BYTES)]) {
        return WeightsError::not_weights(path, kind);
    }
    let found = bytes.len() as u64;
    match described_length(bytes) {
        Some(length) if found < length => {
            WeightsError::format(path, format!("it has {found} of at least {length} bytes"))
        }
        Some(length) if found > length => {
            WeightsError::format(path, format!("it has {found} bytes instead of {length}"))
        }
        _ => WeightsError::format(path, error),
    }
}

/// Returns the length of a safetensors file according to the part of its header that is there.
fn described_length(bytes: &[u8]) -> Option<u64> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let header = u64::from_le_bytes(*length).checked_add(8)?;
    if rest.first().is_some_and(|&first| first != b'{') {
        return None;
    }
    let Some(entries) = header_of(bytes) else { return (header > bytes.len() as u64).then_some(header) };
    let ends = entries.values().filter_map(|entry| entry.get("data_offsets")?.get(1)?.as_u64());
    header.checked_add(ends.max().unwrap_or(0))
}

/// Parses the header of a safetensors file from its first bytes: the tensors by name, and the metadata under
/// `__metadata__`. Returns `None` if this is not a safetensors file or `start` does not contain the complete header.
pub fn header_of(start: &[u8]) -> Option<serde_json::Map<String, serde_json::Value>> {
    let (length, rest) = start.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    serde_json::from_slice(rest.get(..length)?).ok()
}

/// Fills `variables` from a safetensors file, converting floating-point types to the variables' kind.
///
/// # Errors
/// Returns an error, without changing any variable, if the file cannot be read, is not a safetensors file, or does not
/// have exactly the names and shapes of `variables`.
pub fn load(path: &Path, variables: &BTreeMap<String, Tensor>) -> Result<(), WeightsError> {
    load_bytes(path, &read(path)?, variables, &[])
}

/// Like [`load`], from the bytes of a file; `path` is only used in errors. Tensors with the prefixes `ignored` are left out.
pub(crate) fn load_bytes(
    path: &Path,
    bytes: &[u8],
    variables: &BTreeMap<String, Tensor>,
    ignored: &[&str],
) -> Result<(), WeightsError> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| not_safetensors(path, bytes, &error))?;
    fill_selected(path, file.tensors().into_iter().collect(), Section::Weights, variables, ignored).map(drop)
}

/// Fills `variables` from the state dict of a section of a file. Tensors with the prefixes `ignored` are left out. Returns
/// false if there are no averages; without weights, all variables are missing.
///
/// # Errors
/// See [`fill`]. Also returns an error if more than one state dict has the names of `variables`.
pub(crate) fn fill_selected<S: Stored>(
    path: &Path,
    stored: BTreeMap<String, S>,
    section: Section,
    variables: &BTreeMap<String, Tensor>,
    ignored: &[&str],
) -> Result<bool, WeightsError> {
    let selected = select(stored, section, variables).map_err(|error| WeightsError::ambiguous(path, error.sets))?;
    let mut selected = match (selected, section) {
        (Some(selected), _) => selected,
        (None, Section::Averages) => return Ok(false),
        (None, Section::Weights) => BTreeMap::new(),
    };
    selected.retain(|name, _| !ignored.iter().any(|prefix| name.starts_with(prefix)));
    fill(path, &selected, variables).map(|()| true)
}

/// Fills `variables` from stored tensors with the same names and shapes.
///
/// # Errors
/// Returns an error, without changing any variable, if names, shapes or types do not match. Also returns an error if a
/// tensor cannot be read.
fn fill<S: Stored>(
    path: &Path,
    stored: &BTreeMap<String, S>,
    variables: &BTreeMap<String, Tensor>,
) -> Result<(), WeightsError> {
    let mismatch = compare(stored, variables);
    if !mismatch.is_empty() {
        return Err(WeightsError::Mismatch { path: path.to_owned(), mismatch });
    }
    let kind =
        |(name, tensor): (&String, &S)| tensor.float_kind().map_err(|dtype| WeightsError::dtype(path, name, dtype));
    let kinds = stored.iter().map(kind).collect::<Result<Vec<_>, _>>()?;
    for (((name, tensor), variable), kind) in stored.iter().zip(variables.values()).zip(kinds) {
        copy(tensor, variable, kind)
            .map_err(|reason| WeightsError::format(path, format!("tensor {name}: {reason}")))?;
    }
    Ok(())
}

fn copy<S: Stored>(stored: &S, variable: &Tensor, kind: Kind) -> Result<(), String> {
    let values =
        Tensor::f_from_data_size(&stored.bytes()?, &stored.shape(), kind).map_err(|error| error.to_string())?;
    tch::no_grad(|| variable.shallow_clone().f_copy_(&values)).map_err(|error| error.to_string())
}

fn compare<S: Stored>(stored: &BTreeMap<String, S>, variables: &BTreeMap<String, Tensor>) -> Mismatch {
    let mut mismatch = Mismatch::default();
    let names: BTreeSet<&String> = stored.keys().chain(variables.keys()).collect();
    for name in names {
        match (stored.get(name), variables.get(name)) {
            (Some(tensor), Some(variable)) if tensor.shape() != variable.size() => {
                mismatch.misshapen.push((name.clone(), tensor.shape(), variable.size()));
            }
            (None, Some(_)) => mismatch.missing.push(name.clone()),
            (Some(_), None) => mismatch.unexpected.push(name.clone()),
            _ => {}
        }
    }
    mismatch
}
