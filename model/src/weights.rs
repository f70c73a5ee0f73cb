//! Weights in and out as safetensors under the official names.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use tch::{Tensor, nn};
use thiserror::Error;

/// What is wrong with a weights file.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// io
    #[error("{}: {source}", path.display())]
    Io {
        /// file
        path: PathBuf,
        /// cause
        source: std::io::Error,
    },
    /// format
    #[error("{}: {reason}", path.display())]
    Format {
        /// file
        path: PathBuf,
        /// cause
        reason: String,
    },
}

impl WeightsError {
    pub(crate) fn metadata(path: &Path, key: &str, reason: impl ToString) -> Self {
        Self::Format { path: path.to_owned(), reason: format!("metadata {key}: {}", reason.to_string()) }
    }
}

/// read
pub fn read(path: &Path) -> Result<Vec<u8>, WeightsError> {
    fs::read(path).map_err(|source| WeightsError::Io { path: path.to_owned(), source })
}

/// metadata
pub fn metadata(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>, WeightsError> {
    let (_, m) = safetensors::SafeTensors::read_metadata(bytes)
        .map_err(|e| WeightsError::Format { path: path.to_owned(), reason: e.to_string() })?;
    Ok(m.metadata().clone().unwrap_or_default().into_iter().collect())
}

/// load
pub fn load_bytes(path: &Path, bytes: &[u8], variables: &BTreeMap<String, Tensor>) -> Result<(), WeightsError> {
    let _ = bytes;
    let file = Tensor::read_safetensors(path)
        .map_err(|e| WeightsError::Format { path: path.to_owned(), reason: e.to_string() })?;
    for (name, t) in file {
        if let Some(v) = variables.get(&name) {
            tch::no_grad(|| v.shallow_clone().copy_(&t));
        }
    }
    Ok(())
}

/// named
pub fn named(vs: &nn::VarStore) -> BTreeMap<String, Tensor> {
    vs.variables().into_iter().collect()
}

/// save
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<(), WeightsError> {
    let data: Vec<(String, Vec<u8>, Vec<usize>)> = tensors.iter().map(|(n, t)| {
        let t = t.contiguous();
        let mut b = vec![0u8; t.numel() * t.kind().elt_size_in_bytes()];
        t.copy_data_u8(&mut b, t.numel());
        (n.clone(), b, t.size().iter().map(|&d| d as usize).collect())
    }).collect();
    let views: Vec<(String, safetensors::tensor::TensorView)> = data.iter().map(|(n, b, s)| (n.clone(), safetensors::tensor::TensorView::new(safetensors::Dtype::F16, s.clone(), b).unwrap())).collect();
    let bytes = safetensors::serialize(views, Some(metadata.clone().into_iter().collect())).map_err(|e| WeightsError::Format { path: path.to_owned(), reason: e.to_string() })?;
    let tmp = path.with_extension("tmp");
    let io = |source| WeightsError::Io { path: path.to_owned(), source };
    let mut f = fs::File::create(&tmp).map_err(io)?;
    f.write_all(&bytes).map_err(io)?;
    fs::rename(tmp, path).map_err(io)
}
