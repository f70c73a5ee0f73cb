//! A file of somebody's weights, of whatever known format.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use tch::Tensor;

use super::{WeightsError, fill, load_bytes, read};
use crate::pickle::{self, PickleFile};

/// Weights of a model and, in the official checkpoints, their moving averages.
#[derive(Debug)]
pub struct WeightsFile(Format);

#[derive(Debug)]
enum Format {
    Safetensors { path: PathBuf, bytes: Vec<u8> },
    PyTorch(PickleFile),
}

impl WeightsFile {
    /// Opens a safetensors file or one of PyTorch's, told apart by their content.
    ///
    /// # Errors
    /// When it cannot be read or is neither; nothing that it may contain is run.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let start = start_of(path)?;
        if pickle::is_archive(&start) {
            return Ok(Self(Format::PyTorch(PickleFile::open(path)?)));
        }
        if pickle::is_bare_pickle(&start) {
            let old = "it is a pickle as torch.save wrote before PyTorch 1.6, without checksums";
            return Err(WeightsError::pytorch(path, old));
        }
        Ok(Self(Format::Safetensors { path: path.to_owned(), bytes: read(path)? }))
    }

    /// Fills `variables` with the weights: the dictionary `model` of an official checkpoint, or the whole file where
    /// it is a state dict by itself.
    ///
    /// # Errors
    /// When names, shapes or types are not those of `variables`; then none is changed.
    pub fn fill_model(&self, variables: &BTreeMap<String, Tensor>) -> Result<(), WeightsError> {
        match &self.0 {
            Format::Safetensors { path, bytes } => load_bytes(path, bytes, variables),
            Format::PyTorch(file) => match file.section("model") {
                section if section.is_empty() => fill(file.path(), &file.tensors(), variables),
                section => fill(file.path(), &section, variables),
            },
        }
    }

    /// Fills `variables` with the moving averages: the dictionary `model_ema` of an official checkpoint. False when the
    /// file has none.
    ///
    /// # Errors
    /// As [`WeightsFile::fill_model`].
    pub fn fill_ema(&self, variables: &BTreeMap<String, Tensor>) -> Result<bool, WeightsError> {
        let Format::PyTorch(file) = &self.0 else { return Ok(false) };
        let section = file.section("model_ema");
        if section.is_empty() {
            return Ok(false);
        }
        fill(file.path(), &section, variables).map(|()| true)
    }

    /// The PyTorch file, if it is one.
    pub(crate) fn pickle(&self) -> Option<&PickleFile> {
        match &self.0 {
            Format::PyTorch(file) => Some(file),
            Format::Safetensors { .. } => None,
        }
    }

    /// The bytes of a safetensors file.
    pub(crate) fn into_safetensors(self) -> Option<Vec<u8>> {
        match self.0 {
            Format::Safetensors { bytes, .. } => Some(bytes),
            Format::PyTorch(_) => None,
        }
    }
}

fn start_of(path: &Path) -> Result<Vec<u8>, WeightsError> {
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(16).read_to_end(&mut start));
    read.map_err(|source| WeightsError::io(path, source))?;
    Ok(start)
}
