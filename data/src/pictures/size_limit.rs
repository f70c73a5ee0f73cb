//! The largest picture that is decoded.

use thiserror::Error;

/// Number of pixels above which Pillow refuses a picture as a decompression bomb.
pub(super) const MAX_PIXELS: u64 = 178_956_970;

/// A picture has more pixels than are decoded, whether or not its file contains them.
#[derive(Debug, Error)]
#[error("has {width}x{height} pixels, more than the limit of {MAX_PIXELS}; scale it down")]
pub struct TooLarge {
    width: u64,
    height: u64,
}

/// Returns an error if a picture of this size is too large.
pub(super) fn check_size(width: u64, height: u64) -> Result<(), TooLarge> {
    match width.checked_mul(height) {
        Some(pixels) if pixels <= MAX_PIXELS => Ok(()),
        _ => Err(TooLarge { width, height }),
    }
}
