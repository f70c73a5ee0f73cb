//! Errors of weights files.

use std::io;
use std::path::{Path, PathBuf};

use tch::Kind;
use thiserror::Error;

use super::file_kind::OtherKind;
use crate::text::printable;

/// Number of names of each kind that an error message lists; the others are counted.
const NAMES_SHOWN: usize = 4;

/// An error in reading or writing a weights file.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// The file cannot be read or written.
    #[error("weights {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error reported by the system.
        #[source]
        source: io::Error,
    },
    /// The file has another format.
    #[error("{} is not a weights file: it is {what}; {fix}", path.display())]
    NotWeights {
        /// The file.
        path: PathBuf,
        /// What the file is.
        what: &'static str,
        /// How to get the weights.
        fix: &'static str,
    },
    /// The file holds several sets of weights for the model.
    #[error(
        "weights {} hold more than one set of tensors with the names of the model ({} and {}); save one of them to a file of \
         its own", path.display(), sets[0], sets[1]
    )]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// Two of the sets.
        sets: [String; 2],
    },
    /// The file is not a complete safetensors file.
    #[error("weights {}: not a complete safetensors file ({reason}); convert or download it again", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The error reported by the parser.
        reason: String,
    },
    /// The file was not written by PyTorch, or it is damaged.
    #[error(
        "weights {}: not a complete torch.save file ({reason}); download it again, or save it with PyTorch 1.6 or \
         newer", path.display()
    )]
    PyTorch {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An entry of the file's metadata is invalid.
    #[error("weights {}: metadata {key:?}: {reason}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Metadata key.
        key: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// A tensor is stored in a type that weights cannot have.
    #[error("weights {}: tensor {name} is stored as {dtype}; weights must be F64, F32, F16 or BF16", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// Tensor name.
        name: String,
        /// Its safetensors type.
        dtype: String,
    },
    /// The tensors do not match those of the model.
    #[error(
        "weights {} do not match the model: {mismatch}; use the configuration they were trained with",
        path.display()
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// All differences.
        mismatch: Mismatch,
    },
    /// A tensor to be saved has a kind without a safetensors type.
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
        Self::Metadata { path: path.to_owned(), key: key.to_owned(), reason: printable(&reason.to_string()) }
    }

    /// Creates [`WeightsError::NotWeights`].
    pub(super) fn not_weights(path: &Path, kind: OtherKind) -> Self {
        Self::NotWeights { path: path.to_owned(), what: kind.what, fix: kind.fix }
    }

    /// Creates [`WeightsError::Ambiguous`].
    pub(super) fn ambiguous(path: &Path, sets: [String; 2]) -> Self {
        Self::Ambiguous { path: path.to_owned(), sets: sets.map(|set| printable(&set)) }
    }

    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn format(path: &Path, reason: impl ToString) -> Self {
        Self::Format { path: path.to_owned(), reason: printable(&reason.to_string()) }
    }

    pub(crate) fn pytorch(path: &Path, reason: impl ToString) -> Self {
        Self::PyTorch { path: path.to_owned(), reason: printable(&reason.to_string()) }
    }

    /// Creates [`WeightsError::Dtype`].
    pub(super) fn dtype(path: &Path, name: &str, dtype: String) -> Self {
        Self::Dtype { path: path.to_owned(), name: printable(name), dtype }
    }
}

/// All differences between the tensors of a file and those of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mismatch {
    /// Names that are in the model but not in the file.
    pub missing: Vec<String>,
    /// Names that are in the file but not in the model.
    pub unexpected: Vec<String>,
    /// Names with different shapes, with the shape in the file followed by that in the model.
    pub misshapen: Vec<(String, Vec<i64>, Vec<i64>)>,
}

impl Mismatch {
    pub(super) fn is_empty(&self) -> bool {
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
    let shown: Vec<String> = names.iter().take(NAMES_SHOWN).map(|name| printable(name)).collect();
    let shown = shown.join(", ");
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
