//! Decoding of picture files to RGB pixels.
//!
//! The format is detected from the contents, not from the name: ImageNet contains a PNG file named .JPEG. Grey,
//! palette, CMYK and 16-bit pictures are converted to 8-bit RGB, and transparency is composited on white. Orientation
//! tags are ignored, as in ADM's loader.

use image::{DynamicImage, RgbImage};
use thiserror::Error;

use super::crop::{CropError, center_crop};

/// Reason why a picture cannot be decoded.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// The file is damaged or has an unknown format.
    #[error("cannot be decoded: {0}")]
    Decode(#[from] image::ImageError),
    /// The JPEG file is truncated. The decoder would fill the rest with grey.
    #[error("is a truncated JPEG file")]
    CutOff,
    /// The picture cannot be cropped.
    #[error(transparent)]
    Crop(#[from] CropError),
}

/// Decodes a picture file and crops it to `size` x `size` pixels, stored row by row: `[size, size, 3]` u8.
pub fn load_picture(bytes: &[u8], size: u32) -> Result<RgbImage, DecodeError> {
    if bytes.starts_with(&[0xff, 0xd8]) && !jpeg_is_whole(bytes) {
        return Err(DecodeError::CutOff);
    }
    let picture = image::load_from_memory(bytes)?;
    Ok(center_crop(to_rgb(picture), size)?)
}

/// Whether the segments of a JPEG file lead to its end marker. In the compressed data after a start of scan, 0xff
/// begins a marker unless it is followed by 0 (an escaped 0xff) or by a restart marker.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2;
    while let Some(&[0xff, marker]) = bytes.get(at..at + 2) {
        match marker {
            END => return true,
            // Padding before a marker.
            0xff => at += 1,
            // Markers without a segment.
            0x01 | 0xd0..=0xd7 => at += 2,
            _ => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                if marker == START_OF_SCAN {
                    let data = bytes.get(at..).unwrap_or_default();
                    let is_marker = |two: &[u8]| two[0] == 0xff && !matches!(two[1], 0 | 0xff | 0xd0..=0xd7);
                    match data.windows(2).position(is_marker) {
                        Some(length) => at += length,
                        None => return false,
                    }
                }
            }
        }
    }
    false
}

fn to_rgb(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let picture = picture.into_rgba8();
    let mut rgb = RgbImage::new(picture.width(), picture.height());
    for (to, from) in rgb.pixels_mut().zip(picture.pixels()) {
        let [red, green, blue, alpha] = from.0;
        to.0 = [red, green, blue].map(|value| over_white(value, alpha));
    }
    rgb
}

/// Returns `value * alpha + white * (1 - alpha)`, rounded to the nearest level.
fn over_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, ImageFormat, Luma, Rgba, RgbaImage};

    fn png(picture: DynamicImage) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, ImageFormat::Png).expect("write png");
        bytes.into_inner()
    }

    #[test]
    fn transparency_lands_on_white() {
        let mut picture = RgbaImage::from_pixel(4, 4, Rgba([9, 9, 9, 0]));
        picture.put_pixel(0, 0, Rgba([10, 20, 30, 255]));
        picture.put_pixel(1, 0, Rgba([0, 0, 0, 128]));
        let rgb = load_picture(&png(picture.into()), 4).expect("load");
        assert_eq!(rgb.get_pixel(0, 0).0, [10, 20, 30]);
        assert_eq!(rgb.get_pixel(1, 0).0, [127, 127, 127]);
        assert_eq!(rgb.get_pixel(3, 3).0, [255, 255, 255]);
    }

    #[test]
    fn grey_becomes_three_equal_channels() {
        let grey = GrayImage::from_pixel(5, 5, Luma([77]));
        let rgb = load_picture(&png(grey.into()), 5).expect("load");
        assert!(rgb.pixels().all(|pixel| pixel.0 == [77, 77, 77]));
    }

    #[test]
    fn a_jpeg_that_is_cut_off_is_an_error_wherever_the_cut_is() {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let picture =
            image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * 37) as u8, (y * 91) as u8, (x ^ y) as u8]));
        picture.write_to(&mut bytes, ImageFormat::Jpeg).expect("write jpeg");
        let mut bytes = bytes.into_inner();
        for length in 0..bytes.len() {
            assert!(load_picture(&bytes[..length], 16).is_err(), "{length} of {} bytes", bytes.len());
        }
        bytes.extend_from_slice(b"trailing bytes do no harm");
        load_picture(&bytes, 16).expect("load");
    }

    #[test]
    fn damaged_bytes_are_an_error() {
        let good = png(RgbaImage::new(16, 16).into());
        assert!(load_picture(b"no picture at all", 8).is_err());
        assert!(load_picture(&good[..good.len() / 2], 8).is_err());
        assert!(load_picture(&[], 8).is_err());
    }
}
