//! One .npz file of cached latents: a zip archive of two arrays in NumPy's format.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use half::f16;
use npyz::{NpyFile, Order};
use thiserror::Error;
use zip::ZipArchive;

/// The two views of a picture, in the order of a record.
const ARRAYS: [&str; 2] = ["moments", "moments_flip"];
/// Longest header taken; NumPy's own are 128 bytes. The parser descends into it, so it must not be endless.
const LONGEST_HEADER: usize = 4096;
/// Longest array taken, in bytes: 64 channels on a grid of 128 are 4 MiB.
const LONGEST_ARRAY: u64 = 64 << 20;
/// Log-variances are kept within these, as the VAE's own sampling and `encode` do.
const LOGVAR: (f32, f32) = (-30.0, 20.0);

/// Why a file of cached latents cannot be used.
#[derive(Debug, Error)]
pub enum NpzError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is no zip archive, a damaged one, or lacks an array.
    #[error("is not a whole .npz file: {0}")]
    Zip(String),
    /// What is in it is no array of the kind.
    #[error("array {array} {what}")]
    Array {
        /// Name of the array.
        array: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

/// The moments of one picture and of its mirror image, as f16 little-endian bytes [2C, H, W].
///
/// # Errors
/// When the file is damaged, its arrays are not float32 of `shape`, or a value has no half-precision number.
pub fn read_moments(path: &Path, shape: [usize; 3]) -> Result<[Vec<u8>; 2], NpzError> {
    let mut archive = open(path)?;
    let mut halves = |array| -> Result<Vec<u8>, NpzError> {
        let (found, values) = read_array(&mut archive, array)?;
        if found != shape {
            return Err(NpzError::Array { array, what: format!("is {found:?}, the others are {shape:?}") });
        }
        to_halves(&values, shape).map_err(|what| NpzError::Array { array, what })
    };
    Ok([halves(ARRAYS[0])?, halves(ARRAYS[1])?])
}

/// Shape of the first array.
pub(super) fn shape(path: &Path) -> Result<[usize; 3], NpzError> {
    Ok(read_array(&mut open(path)?, ARRAYS[0])?.0)
}

fn open(path: &Path) -> Result<ZipArchive<BufReader<File>>, NpzError> {
    ZipArchive::new(BufReader::new(File::open(path)?)).map_err(|error| NpzError::Zip(error.to_string()))
}

fn read_array(
    archive: &mut ZipArchive<BufReader<File>>,
    array: &'static str,
) -> Result<([usize; 3], Vec<f32>), NpzError> {
    let wrong = |what: String| NpzError::Array { array, what };
    let entry = archive.by_name(&format!("{array}.npy"));
    let entry = entry.map_err(|error| NpzError::Zip(format!("{array}: {error}")))?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a longer one; reading to the end compares the CRC-32.
    entry
        .take(LONGEST_ARRAY + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| NpzError::Zip(format!("{array}: {error}")))?;
    if bytes.len() as u64 > LONGEST_ARRAY {
        return Err(wrong(format!("has more than {LONGEST_ARRAY} bytes")));
    }
    let data = data_start(&bytes).ok_or_else(|| wrong("has no header of NumPy's".to_owned()))?;
    let file = NpyFile::new(&bytes[..]).map_err(|error| wrong(format!("has a damaged header: {error}")))?;
    let dtype = file.dtype().descr();
    if dtype != "'<f4'" || file.order() != Order::C {
        return Err(wrong(format!("holds {dtype} in {:?} order, not float32 in C order", file.order())));
    }
    let shape: Vec<usize> = file.shape().iter().map(|&length| usize::try_from(length).unwrap_or(usize::MAX)).collect();
    let Ok(shape) = <[usize; 3]>::try_from(shape.as_slice()) else {
        return Err(wrong(format!("has {} dimensions, not channels, height and width", shape.len())));
    };
    let length = shape.iter().try_fold(4usize, |product, &length| product.checked_mul(length));
    if length != Some(bytes.len() - data) || length == Some(0) {
        return Err(wrong(format!("has {} bytes of data, not those of {shape:?}", bytes.len() - data)));
    }
    let values = file.into_vec().map_err(|error| wrong(format!("cannot be read: {error}")))?;
    Ok((shape, values))
}

/// Where the data begin, as the first bytes say, if they are those of an .npy file with a header of sane length.
fn data_start(bytes: &[u8]) -> Option<usize> {
    let (length, start) = match bytes.get(..8)? {
        [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _] => {
            (u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?).into(), 10)
        }
        [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _] => (u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?), 12),
        _ => return None,
    };
    let length = usize::try_from(length).ok()?;
    (length <= LONGEST_HEADER && start + length <= bytes.len()).then_some(start + length)
}

/// [2C, H, W] values, means first, to half precision.
fn to_halves(values: &[f32], [channels, height, width]: [usize; 3]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(2 * values.len());
    for (index, &value) in values.iter().enumerate() {
        let is_logvar = index >= values.len() / 2;
        let half = f16::from_f32(if is_logvar { value.clamp(LOGVAR.0, LOGVAR.1) } else { value });
        if !half.is_finite() {
            let (channel, place) = (index / (height * width), index % (height * width));
            let place = [channel % channels.max(1), place / width, place % width];
            return Err(format!("is {value:e} at {place:?}, which half precision cannot hold"));
        }
        bytes.extend_from_slice(&half.to_le_bytes());
    }
    Ok(bytes)
}
