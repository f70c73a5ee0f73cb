//! Reading of .npz files of cached latents: zip archives of two arrays in NumPy's format.

use std::io::{Cursor, Read};

use half::f16;
use npyz::{NpyFile, Order};
use thiserror::Error;
use zip::ZipArchive;

use crate::sources::ReadError;

/// Names of the arrays with the two views of a picture, in the order of a record.
const ARRAYS: [&str; 2] = ["moments", "moments_flip"];
/// Maximum size of a header; NumPy writes 128 bytes. The parser is recursive, so the size must be limited.
const MAX_HEADER_BYTES: usize = 4096;
/// Maximum size of an array in bytes. One with 64 channels on a grid of 128 has 4 MiB.
const MAX_ARRAY_BYTES: u64 = 64 << 20;
/// Range to which log-variances are clamped, as in the VAE and in `encode`.
const LOGVAR_RANGE: (f32, f32) = (-30.0, 20.0);

/// Reason why a file of cached latents cannot be used.
#[derive(Debug, Error)]
pub enum NpzError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file is not a zip archive, is damaged, or lacks an array.
    #[error("is not a complete .npz file: {0}")]
    Zip(String),
    /// An array has the wrong type or shape.
    #[error("array {array} {what}")]
    Array {
        /// Name of the array.
        array: &'static str,
        /// Description of the problem.
        what: String,
    },
}

/// Reads the moments of a picture and of its mirror image from an .npz file as f16 little-endian bytes [2C, H, W].
///
/// # Errors
/// Returns an error if the file is damaged, if its arrays are not float32 of `shape`, or if half precision cannot
/// represent a value.
pub fn read_moments(file: &[u8], shape: [usize; 3]) -> Result<[Vec<u8>; 2], NpzError> {
    let mut archive = open(file)?;
    let mut halves = |array| -> Result<Vec<u8>, NpzError> {
        let (found, values) = read_array(&mut archive, array)?;
        if found != shape {
            return Err(NpzError::Array { array, what: format!("is {found:?}, the others are {shape:?}") });
        }
        to_halves(&values, shape).map_err(|what| NpzError::Array { array, what })
    };
    Ok([halves(ARRAYS[0])?, halves(ARRAYS[1])?])
}

/// Returns the shape of the first array.
pub(super) fn shape(file: &[u8]) -> Result<[usize; 3], NpzError> {
    Ok(read_array(&mut open(file)?, ARRAYS[0])?.0)
}

fn open(file: &[u8]) -> Result<ZipArchive<Cursor<&[u8]>>, NpzError> {
    ZipArchive::new(Cursor::new(file)).map_err(|error| NpzError::Zip(error.to_string()))
}

fn read_array(
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    array: &'static str,
) -> Result<([usize; 3], Vec<f32>), NpzError> {
    let wrong = |what: String| NpzError::Array { array, what };
    let entry = archive.by_name(&format!("{array}.npy"));
    let entry = entry.map_err(|error| NpzError::Zip(format!("{array}: {error}")))?;
    let mut bytes = Vec::new();
    // Read one byte more than allowed, to detect a longer array. Reading to the end verifies the CRC-32.
    entry
        .take(MAX_ARRAY_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| NpzError::Zip(format!("{array}: {error}")))?;
    if bytes.len() as u64 > MAX_ARRAY_BYTES {
        return Err(wrong(format!("has more than {MAX_ARRAY_BYTES} bytes")));
    }
    let data = data_start(&bytes).ok_or_else(|| wrong("has no NumPy header".to_owned()))?;
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
        return Err(wrong(format!("has {} bytes of data, which do not match the shape {shape:?}", bytes.len() - data)));
    }
    let values = file.into_vec().map_err(|error| wrong(format!("cannot be read: {error}")))?;
    Ok((shape, values))
}

/// Returns the offset of the data, if the file begins with an .npy header of acceptable length.
fn data_start(bytes: &[u8]) -> Option<usize> {
    let (length, start) = match bytes.get(..8)? {
        [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _] => {
            (u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?).into(), 10)
        }
        [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _] => (u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?), 12),
        _ => return None,
    };
    let length = usize::try_from(length).ok()?;
    (length <= MAX_HEADER_BYTES && start + length <= bytes.len()).then_some(start + length)
}

/// Converts [2C, H, W] values, means first, to half precision.
fn to_halves(values: &[f32], [channels, height, width]: [usize; 3]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(2 * values.len());
    for (index, &value) in values.iter().enumerate() {
        let is_logvar = index >= values.len() / 2;
        let half = f16::from_f32(if is_logvar { value.clamp(LOGVAR_RANGE.0, LOGVAR_RANGE.1) } else { value });
        if !half.is_finite() {
            let (channel, pixel) = (index / (height * width), index % (height * width));
            let position = [channel % channels.max(1), pixel / width, pixel % width];
            return Err(format!("is {value:e} at {position:?}, which half precision cannot hold"));
        }
        bytes.extend_from_slice(&half.to_le_bytes());
    }
    Ok(bytes)
}
