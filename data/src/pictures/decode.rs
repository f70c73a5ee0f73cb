//! Decoding of picture files to RGB pixels.
//!
//! The format is detected from the contents, not from the name: ImageNet contains a PNG file named .JPEG. The pixels are
//! those of Pillow's `Image.open(file).convert("RGB")`, which the official code uses. Transparency is therefore dropped:
//! the color under a transparent pixel becomes visible. Orientation tags are ignored, except those of TIFF files, which
//! Pillow applies. Levels of 16 bits are reduced to their high byte; in 16-bit grey pictures, Pillow would instead clip
//! them at 255.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use thiserror::Error;

use super::crop::{CropError, center_crop};
use super::jpeg::{JpegError, decode_jpeg, is_jpeg};
use super::size_limit::{MAX_PIXELS, TooLarge, check_size};

/// Limit of the memory for one picture: that of the largest picture in RGBA with 16 bits.
const MAX_BYTES: u64 = MAX_PIXELS * 8;

/// Reason why a picture cannot be decoded.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// The file is damaged or has an unknown format.
    #[error("cannot be decoded: {0}")]
    Decode(#[source] image::ImageError),
    /// Decoding needs too much memory.
    #[error("needs more than {} MB of memory to be decoded; scale it down", MAX_BYTES / 1_000_000)]
    Memory,
    /// The JPEG file cannot be decoded.
    #[error(transparent)]
    Jpeg(#[from] JpegError),
    /// The picture is too large.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The picture cannot be cropped.
    #[error(transparent)]
    Crop(#[from] CropError),
}

impl From<image::ImageError> for DecodeError {
    fn from(error: image::ImageError) -> Self {
        match error {
            image::ImageError::Limits(_) => Self::Memory,
            error => Self::Decode(error),
        }
    }
}

/// Decodes a picture file and crops it to `size` x `size` pixels, stored row by row: `[size, size, 3]` u8.
pub fn load_picture(bytes: &[u8], size: u32) -> Result<RgbImage, DecodeError> {
    let picture = if is_jpeg(bytes) { decode_jpeg(bytes)? } else { decode_other(bytes)? };
    Ok(center_crop(picture, size)?)
}

/// Decodes a file of any format other than JPEG.
fn decode_other(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(image::ImageError::from)?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let format = reader.format();
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    let orientation = if format == Some(ImageFormat::Tiff) { Some(decoder.orientation()?) } else { None };
    let mut picture = DynamicImage::from_decoder(decoder)?;
    if let Some(orientation) = orientation {
        picture.apply_orientation(orientation);
    }
    Ok(to_rgb(picture))
}

fn to_rgb(picture: DynamicImage) -> RgbImage {
    use DynamicImage::{ImageLuma16, ImageLumaA16, ImageRgb16, ImageRgba16};
    match picture {
        ImageLuma16(_) | ImageLumaA16(_) | ImageRgb16(_) | ImageRgba16(_) => {
            let deep = picture.into_rgb16();
            let mut rgb = RgbImage::new(deep.width(), deep.height());
            rgb.iter_mut().zip(deep.iter()).for_each(|(level, deep)| *level = (deep >> 8) as u8);
            rgb
        }
        picture => picture.into_rgb8(),
    }
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
    fn transparency_is_dropped() {
        let mut picture = RgbaImage::from_pixel(4, 4, Rgba([9, 8, 7, 0]));
        picture.put_pixel(0, 0, Rgba([10, 20, 30, 255]));
        picture.put_pixel(1, 0, Rgba([0, 0, 0, 128]));
        let rgb = load_picture(&png(picture.into()), 4).expect("load");
        assert_eq!(rgb.get_pixel(0, 0).0, [10, 20, 30]);
        assert_eq!(rgb.get_pixel(1, 0).0, [0, 0, 0]);
        assert_eq!(rgb.get_pixel(3, 3).0, [9, 8, 7]);
    }

    #[test]
    fn grey_becomes_three_equal_channels() {
        let grey = GrayImage::from_pixel(5, 5, Luma([77]));
        let rgb = load_picture(&png(grey.into()), 5).expect("load");
        assert!(rgb.pixels().all(|pixel| pixel.0 == [77, 77, 77]));
    }

    #[test]
    fn a_jpeg_that_is_cut_off_is_an_error_wherever_the_cut_is() {
        let mut compress = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
        compress.set_size(40, 30);
        let mut compress = compress.start_compress(Vec::new()).expect("start");
        let pixels: Vec<u8> = (0..40 * 30 * 3).map(|index| (index * 37 % 251) as u8).collect();
        compress.write_scanlines(&pixels).expect("write");
        let mut bytes = compress.finish().expect("finish");
        for length in 0..bytes.len() {
            assert!(load_picture(&bytes[..length], 16).is_err(), "{length} of {} bytes", bytes.len());
        }
        bytes.extend_from_slice(b"trailing bytes do no harm");
        load_picture(&bytes, 16).expect("load");
    }

    /// Returns a PNG file with a header for a picture of `width` x `height` RGB pixels, and no contents.
    fn claiming_png(width: u32, height: u32) -> Vec<u8> {
        let mut file = png(RgbImage::new(1, 1).into());
        file[16..20].copy_from_slice(&width.to_be_bytes());
        file[20..24].copy_from_slice(&height.to_be_bytes());
        let mut hash = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32IsoHdlc);
        hash.update(&file[12..29]);
        file[29..33].copy_from_slice(&(hash.finalize() as u32).to_be_bytes());
        file
    }

    #[test]
    fn a_header_that_claims_too_many_pixels_is_an_error() {
        for (width, height) in [(60_000, 60_000), (1, 178_956_971), (14_000, 14_000)] {
            let error = load_picture(&claiming_png(width, height), 256).expect_err("too large");
            let text = format!("has {width}x{height} pixels, more than the limit of 178956970; scale it down");
            assert_eq!(error.to_string(), text);
        }
        // The decoder already refuses a row of this length.
        let error = load_picture(&claiming_png(i32::MAX as u32, 1), 256).expect_err("too large");
        assert_eq!(error.to_string(), "needs more than 1431 MB of memory to be decoded; scale it down");
        // A size within the limit that the file does not contain.
        let error = load_picture(&claiming_png(13_000, 13_000), 256).expect_err("not contained");
        assert!(error.to_string().starts_with("cannot be decoded: "), "{error}");
    }

    /// Returns a JPEG file whose header claims `width` x `height` pixels.
    fn claiming_jpeg(width: u16, height: u16) -> Vec<u8> {
        let mut compress = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
        compress.set_size(8, 8);
        let mut compress = compress.start_compress(Vec::new()).expect("start");
        compress.write_scanlines(&[7; 8 * 8 * 3]).expect("write");
        let mut bytes = compress.finish().expect("finish");
        let is_frame = |two: &[u8]| two[0] == 0xff && (0xc0..=0xc2).contains(&two[1]);
        let frame = bytes.windows(2).position(is_frame).expect("a frame header");
        bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
        bytes
    }

    #[test]
    fn a_jpeg_header_that_claims_too_many_pixels_is_an_error() {
        load_picture(&claiming_jpeg(8, 8), 8).expect("the true size");
        for (width, height) in [(65_500, 65_500), (13_378, 13_378)] {
            let error = load_picture(&claiming_jpeg(width, height), 256).expect_err("too large");
            let text = format!("has {width}x{height} pixels, more than the limit of 178956970; scale it down");
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn damaged_bytes_are_an_error() {
        let good = png(RgbaImage::new(16, 16).into());
        assert!(load_picture(b"no picture at all", 8).is_err());
        assert!(load_picture(&good[..good.len() / 2], 8).is_err());
        assert!(load_picture(&[], 8).is_err());
    }
}
