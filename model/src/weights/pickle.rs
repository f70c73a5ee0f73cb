//! Reading of `torch.save` files without executing any code in them.
//!
//! A pickle is a program. The pytorch-reader crate interprets the few calls that rebuild tensors and dictionaries and
//! executes no others (`argparse.Namespace`, `os.system`, ...). This module adds the checks that the crate leaves out:
//! every checksum of the archive is verified first, including those of parts that no tensor covers completely; archives
//! that torch.save cannot have written (compressed or overlapping parts, a huge pickle) are rejected, which bounds
//! memory and time by the length of the file; and the format of PyTorch before 1.6, which has no checksums, is
//! rejected.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use pytorch_reader::{DType, PytorchReader, Tensor};
use tch::Kind;
use zip::{CompressionMethod, ZipArchive};

use super::error::WeightsError;
use super::file_kind::OtherKind;
use super::load::Stored;

/// Size limit of the pickle in bytes: a hundred times that of ARINAR-B with its optimizer. The reader needs about a
/// hundred bytes of memory for each byte of the pickle.
const LONGEST_PICKLE: u64 = 4 << 20;

/// Returns true if a file with these first bytes is a zip archive, the format of PyTorch since 1.6.
pub(crate) fn is_archive(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04")
}

/// Returns true if a file with these first bytes is a bare pickle, the format of PyTorch before 1.6. A safetensors file
/// may start with the same byte, but its JSON starts at the ninth.
pub(crate) fn is_bare_pickle(start: &[u8]) -> bool {
    start.first() == Some(&0x80) && start.get(8) != Some(&b'{')
}

/// The tensors of a PyTorch file, whose values are read on demand.
#[derive(Debug)]
pub(crate) struct PickleFile {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

impl PickleFile {
    /// Opens a file and verifies its checksums.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is damaged, or was not written by `torch.save` of PyTorch 1.6 or
    /// newer.
    pub(crate) fn open(path: &Path) -> Result<Self, WeightsError> {
        check_archive(path)?;
        let reader = PytorchReader::new(path).map_err(|error| WeightsError::pytorch(path, error))?;
        Ok(Self { path: path.to_owned(), tensors: reader.into_tensors().into_iter().collect() })
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns all tensors by their path through the saved dictionaries, with the keys joined by dots.
    pub(crate) fn tensors(&self) -> BTreeMap<String, &Tensor> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect()
    }
}

impl Stored for &Tensor {
    fn shape(&self) -> Vec<i64> {
        // A size beyond i64 cannot exist in a file; -1 matches no shape of a model.
        Tensor::shape(self).iter().map(|&length| i64::try_from(length).unwrap_or(-1)).collect()
    }

    fn float_kind(&self) -> Result<Kind, String> {
        match self.dtype() {
            DType::F16 => Ok(Kind::Half),
            DType::BF16 => Ok(Kind::BFloat16),
            DType::F32 => Ok(Kind::Float),
            DType::F64 => Ok(Kind::Double),
            dtype => Err(format!("{dtype:?}")),
        }
    }

    fn bytes(&self) -> Result<Cow<'_, [u8]>, String> {
        self.read().map(Cow::Owned).map_err(|error| error.to_string())
    }
}

/// Checks by the names in an archive that it was written by `torch.save`.
fn check_kind<R: Read + io::Seek>(path: &Path, archive: &ZipArchive<R>) -> Result<(), WeightsError> {
    let names: Vec<_> = archive.file_names().flatten().collect();
    // The files are in a folder with the name of the archive.
    let has = |file: &str| names.iter().any(|name| name.rsplit('/').next() == Some(file));
    let kind = if has("constants.pkl") {
        OtherKind { what: "a TorchScript program", fix: "save the state dict of its module with torch.save" }
    } else if has("data.pkl") {
        return Ok(());
    } else if names.iter().any(|name| name.ends_with(".npy")) {
        OtherKind { what: "a NumPy archive", fix: "save the weights as safetensors, or with torch.save" }
    } else {
        OtherKind { what: "a zip archive of other files", fix: "unpack it first, and give the weights file in it" }
    };
    Err(WeightsError::not_weights(path, kind))
}

fn check_archive(path: &Path) -> Result<(), WeightsError> {
    let file = File::open(path).map_err(|source| WeightsError::io(path, source))?;
    let length = file.metadata().map_err(|source| WeightsError::io(path, source))?.len();
    let wrong = |reason: String| WeightsError::pytorch(path, reason);
    let archive = ZipArchive::new(BufReader::new(file));
    // The directory of a zip archive is at its end.
    let mut archive = archive.map_err(|error| wrong(format!("its end is missing: {error}")))?;
    check_kind(path, &archive)?;
    let mut together = 0u64;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| wrong(error.to_string()))?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.compressed_size() != entry.size() {
            return Err(wrong(format!("{name} is compressed, which torch.save never does")));
        }
        together = together.saturating_add(entry.size());
        if together > length {
            return Err(wrong("the files in the archive overlap".to_owned()));
        }
        if name.ends_with("data.pkl") && entry.size() > LONGEST_PICKLE {
            return Err(wrong(format!("the pickle has {} bytes; the limit is {LONGEST_PICKLE}", entry.size())));
        }
        // Reading to the end makes the archive reader verify the CRC-32.
        let read = io::copy(&mut entry.by_ref(), &mut io::sink()).map_err(|error| wrong(format!("{name}: {error}")))?;
        if read != entry.size() {
            return Err(wrong(format!("{name} is truncated")));
        }
    }
    Ok(())
}
