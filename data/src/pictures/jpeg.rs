//! Decoding of JPEG files with libjpeg.
//!
//! Pillow, which loads the pictures for the official code, uses libjpeg-turbo. Its fork MozJPEG has the same decoder: the
//! pixels are identical, and damaged files are accepted or refused alike. libjpeg skips bytes between segments and
//! replaces damaged data. Like Pillow, this module only refuses a file if libjpeg reports an error, or if the file ends
//! before all pixels are decoded; an end marker is not required.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::RgbImage;
use mozjpeg::{Decompress, Format};
use thiserror::Error;

use super::size_limit::{TooLarge, check_size};

/// Reason why a JPEG file cannot be decoded.
#[derive(Debug, Error)]
pub enum JpegError {
    /// The file ends before all pixels are decoded.
    #[error("is a truncated JPEG file")]
    CutOff,
    /// libjpeg reported an error.
    #[error("cannot be decoded: {0}")]
    Damaged(String),
    /// The picture is too large.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// Whether a file is a JPEG file, by its first bytes.
pub(super) fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff])
}

/// Decodes a JPEG file.
pub(super) fn decode_jpeg(bytes: &[u8]) -> Result<RgbImage, JpegError> {
    let ended = Cell::new(false);
    let decoded = stopped_at_errors(|| decode(Source { rest: bytes, ended: &ended }));
    match decoded {
        Ok(Ok(decoded)) => Ok(decoded),
        Err(_) | Ok(Err(JpegError::Damaged(_))) if ended.get() => Err(JpegError::CutOff),
        Ok(Err(error)) => Err(error),
        Err(message) => Err(JpegError::Damaged(message)),
    }
}

/// Converts the pixels of a file to RGB.
type ToRgb = fn(Vec<u8>) -> Vec<u8>;

fn decode(source: Source<'_>) -> Result<RgbImage, JpegError> {
    let ended = source.ended;
    let damaged = |error: io::Error| JpegError::Damaged(error.to_string());
    let file = Decompress::builder().from_reader(source).map_err(damaged)?;
    check_size(file.width() as u64, file.height() as u64)?;
    let (mut lines, to_rgb): (_, ToRgb) = match file.image().map_err(damaged)? {
        Format::RGB(lines) => (lines, |pixels| pixels),
        Format::Gray(lines) => (lines, |pixels| pixels.into_iter().flat_map(|level| [level; 3]).collect()),
        Format::CMYK(lines) => (lines, |pixels| pixels.chunks_exact(4).flat_map(inverted_cmyk_to_rgb).collect()),
    };
    let pixels = lines.read_scanlines().map_err(damaged)?;
    let (width, height) = (lines.width() as u32, lines.height() as u32);
    // All pixels are known, so that the end of the file is no error any more.
    if let Err(message) = stopped_at_errors(|| lines.finish())
        && !ended.get()
    {
        return Err(JpegError::Damaged(message));
    }
    RgbImage::from_raw(width, height, to_rgb(pixels))
        .ok_or_else(|| JpegError::Damaged("it has another number of pixels".to_owned()))
}

/// Converts a pixel as Pillow does, which assumes that the values of CMYK files are inverted, as Adobe's are.
fn inverted_cmyk_to_rgb(pixel: &[u8]) -> [u8; 3] {
    let white = u32::from(pixel[3]);
    // 255 times the ink, divided by 255 and rounded to the nearest integer.
    let level = |light: u8| white - (u32::from(255 - light) * white + 127) / 255;
    [pixel[0], pixel[1], pixel[2]].map(|light| level(light) as u8)
}

/// Calls libjpeg. The bindings unwind when libjpeg reports an error, with its message as the payload. No panic hook is
/// called.
fn stopped_at_errors<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| match payload.downcast::<String>() {
        Ok(message) => message.trim_start_matches("libjpeg fatal error: ").to_owned(),
        Err(_) => "libjpeg stopped unexpectedly".to_owned(),
    })
}

/// A file in memory. Reading past its end is an error and is recorded; otherwise the bindings would add an end marker.
struct Source<'a> {
    rest: &'a [u8],
    ended: &'a Cell<bool>,
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            self.ended.set(true);
            return Err(io::Error::other("the file ends"));
        }
        Ok(self.rest)
    }

    fn consume(&mut self, count: usize) {
        self.rest = &self.rest[count..];
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.rest.read(buffer)
    }
}
