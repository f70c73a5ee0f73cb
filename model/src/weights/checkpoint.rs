//! Weights files of any supported format.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use tch::Tensor;

use super::error::WeightsError;
use super::file_kind::{self, OtherKind, START_BYTES};
use super::load::{fill_selected, load_bytes, read};
use super::pickle::{self, PickleFile};
use super::state_dict::Section;

/// An opened weights file, which holds the weights of a model and, in official checkpoints, their moving averages.
#[derive(Debug)]
pub struct WeightsFile(Format);

#[derive(Debug)]
enum Format {
    Safetensors { path: PathBuf, bytes: Vec<u8> },
    PyTorch(PickleFile),
}

impl WeightsFile {
    /// Opens a safetensors or PyTorch file; the format is detected from the contents. No code in the file is executed.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or has neither format.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let start = start_of(path)?;
        if pickle::is_archive(&start) {
            return Ok(Self(Format::PyTorch(PickleFile::open(path)?)));
        }
        if let Some(kind) = file_kind::recognize(&start) {
            return Err(WeightsError::not_weights(path, kind));
        }
        if pickle::is_bare_pickle(&start) {
            let old = "it has the format of PyTorch before 1.6, which has no checksums";
            return Err(WeightsError::pytorch(path, old));
        }
        Ok(Self(Format::Safetensors { path: path.to_owned(), bytes: read(path)? }))
    }

    /// Fills `variables` with the weights: the state dict with their names, which may be in a dictionary `model`,
    /// `state_dict` or `model_state_dict`, and may have the names that DistributedDataParallel and torch.compile give it.
    ///
    /// # Errors
    /// Returns an error, without changing any variable, if names, shapes or types do not match those of `variables`, or if
    /// several state dicts do.
    pub fn fill_model(&self, variables: &BTreeMap<String, Tensor>) -> Result<(), WeightsError> {
        match &self.0 {
            Format::Safetensors { path, bytes } => load_bytes(path, bytes, variables, &[]),
            Format::PyTorch(file) => {
                fill_selected(file.path(), file.tensors(), Section::Weights, variables, &[]).map(drop)
            }
        }
    }

    /// Fills `variables` with the moving averages: the dictionary `model_ema` of an official checkpoint. Returns false
    /// if the file has none.
    ///
    /// # Errors
    /// See [`WeightsFile::fill_model`].
    pub fn fill_ema(&self, variables: &BTreeMap<String, Tensor>) -> Result<bool, WeightsError> {
        let Format::PyTorch(file) = &self.0 else { return Ok(false) };
        fill_selected(file.path(), file.tensors(), Section::Averages, variables, &[])
    }

    /// Returns the PyTorch file, or `None` for a safetensors file.
    pub(crate) fn pickle(&self) -> Option<&PickleFile> {
        match &self.0 {
            Format::PyTorch(file) => Some(file),
            Format::Safetensors { .. } => None,
        }
    }

    /// Returns the contents of a safetensors file, or `None` for a PyTorch file.
    pub(crate) fn into_safetensors(self) -> Option<Vec<u8>> {
        match self.0 {
            Format::Safetensors { bytes, .. } => Some(bytes),
            Format::PyTorch(_) => None,
        }
    }
}

/// Returns the first bytes of a file.
fn start_of(path: &Path) -> Result<Vec<u8>, WeightsError> {
    let failed = |source| WeightsError::io(path, source);
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        let fix = "give the path of a safetensors file, or of a file saved with torch.save";
        return Err(WeightsError::not_weights(path, OtherKind { what: "not a regular file", fix }));
    }
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(START_BYTES as u64).read_to_end(&mut start));
    read.map_err(failed)?;
    Ok(start)
}
