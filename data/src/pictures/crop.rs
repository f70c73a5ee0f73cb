//! ADM's centre crop, which prepares all pictures on which the paper's models are trained.
//!
//! Source: `center_crop_arr` of OpenAI's guided-diffusion (image_datasets.py): halve with a box filter while the short
//! side is at least twice the target, scale bicubically until the short side equals the target, then crop the centre.
//! The filters are those of Pillow, whose bicubic kernel has a = -0.5 (Catmull-Rom).

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use thiserror::Error;

/// Reason why a picture cannot be cropped.
#[derive(Debug, Error)]
pub enum CropError {
    /// The picture has no pixels, or the target size is zero.
    #[error("a picture of {width}x{height} pixels cannot be cropped to {size}x{size}")]
    Empty {
        /// Width of the picture in pixels.
        width: u32,
        /// Height of the picture in pixels.
        height: u32,
        /// Target side in pixels.
        size: u32,
    },
    /// The resampler reported an error.
    #[error("resampling to {width}x{height} failed: {source}")]
    Resample {
        /// Target width in pixels.
        width: u32,
        /// Target height in pixels.
        height: u32,
        /// Error reported by the resampler.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Scales and crops `picture` to `size` x `size` pixels as ADM does.
pub(crate) fn center_crop(picture: RgbImage, size: u32) -> Result<RgbImage, CropError> {
    let (width, height) = picture.dimensions();
    if width == 0 || height == 0 || size == 0 {
        return Err(CropError::Empty { width, height, size });
    }
    let halved = halve_while_large(picture, size)?;
    let (width, height) = scaled_to_short_side(halved.dimensions(), size);
    let scaled = resample(halved, width, height, FilterType::CatmullRom)?;
    let (left, top) = ((width - size) / 2, (height - size) / 2);
    Ok(image::imageops::crop_imm(&scaled, left, top, size, size).to_image())
}

fn halve_while_large(mut picture: RgbImage, size: u32) -> Result<RgbImage, CropError> {
    while u64::from(picture.width().min(picture.height())) >= 2 * u64::from(size) {
        let (width, height) = (picture.width() / 2, picture.height() / 2);
        picture = resample(picture, width, height, FilterType::Box)?;
    }
    Ok(picture)
}

/// Returns the dimensions at which the short side equals `size`. Like ADM, multiplies in f64 and rounds half to even,
/// as Python does.
fn scaled_to_short_side((width, height): (u32, u32), size: u32) -> (u32, u32) {
    let scale = f64::from(size) / f64::from(width.min(height));
    let scaled = |side: u32| ((f64::from(side) * scale).round_ties_even() as u32).max(size);
    (scaled(width), scaled(height))
}

/// Resamples like Pillow's `Image.resize`: first all rows, rounded to 8 bits, then all columns. fast_image_resize uses
/// the opposite order by default, which differs by up to 13 grey levels at hard edges.
fn resample(picture: RgbImage, width: u32, height: u32, filter: FilterType) -> Result<RgbImage, CropError> {
    let rows = picture.height();
    resample_one_axis(resample_one_axis(picture, width, rows, filter)?, width, height, filter)
}

/// Resamples either the width or the height. Returns the picture unchanged if it already has the target size.
fn resample_one_axis(picture: RgbImage, width: u32, height: u32, filter: FilterType) -> Result<RgbImage, CropError> {
    if picture.dimensions() == (width, height) {
        return Ok(picture);
    }
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| CropError::Resample { width, height, source };
    let from = ImageRef::new(picture.width(), picture.height(), picture.as_raw(), PixelType::U8x3)
        .map_err(|source| failed(Box::new(source)))?;
    let mut to = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
    Resizer::new().resize(&from, &mut to, &options).map_err(|source| failed(Box::new(source)))?;
    RgbImage::from_raw(width, height, to.into_vec())
        .ok_or_else(|| failed("the resampler returned a buffer of another size".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_half_to_even_as_python_does() {
        // 4x5 to short side 2: 5 * 0.5 = 2.5 -> 2; 4x7: 3.5 -> 4.
        assert_eq!(scaled_to_short_side((4, 5), 2), (2, 2));
        assert_eq!(scaled_to_short_side((4, 7), 2), (2, 4));
        assert_eq!(scaled_to_short_side((500, 375), 256), (341, 256));
    }

    #[test]
    fn a_picture_of_the_wanted_size_is_untouched() {
        let picture = RgbImage::from_fn(8, 8, |x, y| image::Rgb([x as u8, y as u8, 7]));
        let cropped = center_crop(picture.clone(), 8).expect("crop");
        assert_eq!(cropped, picture);
    }

    #[test]
    fn a_tiny_picture_grows_to_the_target() {
        let picture = RgbImage::from_pixel(3, 1, image::Rgb([10, 20, 30]));
        let cropped = center_crop(picture, 16).expect("crop");
        assert_eq!(cropped.dimensions(), (16, 16));
        assert!(cropped.pixels().all(|pixel| pixel.0 == [10, 20, 30]));
    }
}
