//! Files that PyTorch's `torch.save` wrote, read without running anything that is in them.
//!
//! A pickle is a program. The crate pytorch-reader interprets the few calls that rebuild tensors and dictionaries and
//! leaves every other one (argparse.Namespace, os.system, ...) uncalled. What this module adds is what that crate
//! leaves open: every checksum of the archive is compared first, also of parts no tensor spans wholly; archives that
//! torch.save cannot have written (compressed or overlapping parts, a huge pickle) are refused, so memory and time are
//! bounded by the length of the file; and the format from before PyTorch 1.6, which has no checksums, is refused.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use pytorch_reader::{DType, PytorchReader, Tensor};
use tch::Kind;
use zip::{CompressionMethod, ZipArchive};

use crate::weights::{Stored, WeightsError};

/// Longest pickle taken: a hundred times that of ARINAR-B with its optimizer. The reader needs about a hundred bytes of
/// memory for a byte of it.
const LONGEST_PICKLE: u64 = 4 << 20;

/// Whether a file that begins so is a zip archive, as all PyTorch files since 1.6 are.
pub(crate) fn is_archive(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04")
}

/// Whether a file that begins so is a pickle by itself: PyTorch's format before 1.6. A safetensors file may begin with
/// the same byte, but has its JSON after eight.
pub(crate) fn is_bare_pickle(start: &[u8]) -> bool {
    start.first() == Some(&0x80) && start.get(8) != Some(&b'{')
}

/// The tensors of a PyTorch file. Their values are read when they are asked for.
#[derive(Debug)]
pub(crate) struct PickleFile {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

impl PickleFile {
    /// Opens a file and compares its checksums.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or is nothing that `torch.save` wrote since PyTorch 1.6.
    pub(crate) fn open(path: &Path) -> Result<Self, WeightsError> {
        check_archive(path)?;
        let reader = PytorchReader::new(path).map_err(|error| WeightsError::pytorch(path, error))?;
        Ok(Self { path: path.to_owned(), tensors: reader.into_tensors().into_iter().collect() })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, by their path through the saved dictionaries, parts joined by dots.
    pub(crate) fn tensors(&self) -> BTreeMap<String, &Tensor> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect()
    }

    /// The tensors of the dictionary under `key`, by their names in it; empty when there is none.
    pub(crate) fn section(&self, key: &str) -> BTreeMap<String, &Tensor> {
        let inside = |name: &String| name.strip_prefix(key)?.strip_prefix('.').map(str::to_owned);
        self.tensors.iter().filter_map(|(name, tensor)| Some((inside(name)?, tensor))).collect()
    }
}

impl Stored for &Tensor {
    fn shape(&self) -> Vec<i64> {
        // A length beyond i64 cannot have its tensor in a file; it equals no shape of a model.
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

fn check_archive(path: &Path) -> Result<(), WeightsError> {
    let file = File::open(path).map_err(|source| WeightsError::io(path, source))?;
    let length = file.metadata().map_err(|source| WeightsError::io(path, source))?.len();
    let wrong = |reason: String| WeightsError::pytorch(path, reason);
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| wrong(error.to_string()))?;
    let mut together = 0u64;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| wrong(error.to_string()))?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.compressed_size() != entry.size() {
            return Err(wrong(format!("its part {name} is compressed, which torch.save never does")));
        }
        together = together.saturating_add(entry.size());
        if together > length {
            return Err(wrong("its parts overlap".to_owned()));
        }
        if name.ends_with("data.pkl") && entry.size() > LONGEST_PICKLE {
            return Err(wrong(format!("its pickle of {} bytes is longer than that of any model", entry.size())));
        }
        // Reading to the end makes the archive's reader compare the CRC-32.
        let read = io::copy(&mut entry.by_ref(), &mut io::sink()).map_err(|error| wrong(format!("{name}: {error}")))?;
        if read != entry.size() {
            return Err(wrong(format!("its part {name} is cut off")));
        }
    }
    Ok(())
}
