//! ADM's centre crop, which prepares all pictures on which the paper's models are trained.
//!
//! Source: `center_crop_arr` of OpenAI's guided-diffusion (image_datasets.py): halve with a box filter while the short
//! side is at least twice the target, scale bicubically until the short side equals the target, then crop the centre.
//! The filters and their order are those of Pillow, whose bicubic kernel has a = -0.5 (Catmull-Rom).

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use thiserror::Error;

use super::halve::halve;

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

/// Aspect ratio up to which the whole picture is scaled before it is cropped.
///
/// Beyond it, only the part that the crop keeps is scaled: the whole of a picture of 1x30000 pixels would take
/// gigabytes. That part can differ by one grey level, because fast_image_resize rounds the weights of a filter to a
/// precision that depends on all of them.
const MAX_ASPECT: u32 = 16;

/// Scales and crops `picture` to `size` x `size` pixels as ADM does.
pub(crate) fn center_crop(picture: RgbImage, size: u32) -> Result<RgbImage, CropError> {
    let (width, height) = picture.dimensions();
    if width == 0 || height == 0 || size == 0 {
        return Err(CropError::Empty { width, height, size });
    }
    let halved = halve_while_large(picture, size);
    let (width, height) = halved.dimensions();
    if width.max(height) / width.min(height) >= MAX_ASPECT {
        scale_kept(&halved, size)
    } else {
        scale_all(halved, size)
    }
}

/// Scales the whole picture, and crops the centre.
fn scale_all(picture: RgbImage, size: u32) -> Result<RgbImage, CropError> {
    let (width, height) = scaled_to_short_side(picture.dimensions(), size);
    let scaled = resample(picture, width, height)?;
    let (left, top) = ((width - size) / 2, (height - size) / 2);
    Ok(image::imageops::crop_imm(&scaled, left, top, size, size).to_image())
}

/// Scales only the part that [`scale_all`] would keep.
fn scale_kept(picture: &RgbImage, size: u32) -> Result<RgbImage, CropError> {
    let (width, height) = picture.dimensions();
    let short = width.min(height);
    let (across, down) = (Kept::of(width, short, size), Kept::of(height, short, size));
    let part = image::imageops::crop_imm(picture, across.first, down.first, across.count, down.count).to_image();
    let rows = ResizeOptions::new().crop(across.start, 0.0, across.length, f64::from(down.count));
    let columns = ResizeOptions::new().crop(0.0, down.start, f64::from(size), down.length);
    let part = resample_with(&part, size, down.count, rows)?;
    resample_with(&part, size, size, columns)
}

/// The part of a side of a picture that the crop keeps.
struct Kept {
    /// First pixel that contributes.
    first: u32,
    /// Number of pixels that contribute, which includes the reach of the filter beyond `start` and `length`.
    count: u32,
    /// Begin of the crop, counted from `first`.
    start: f64,
    /// Length of the crop in pixels of the picture.
    length: f64,
}

impl Kept {
    /// Returns the part of a side of `side` pixels that is kept if `short` pixels are scaled to `size`.
    fn of(side: u32, short: u32, size: u32) -> Self {
        let (side, size) = (f64::from(side), f64::from(size));
        let scaled = (side * (size / f64::from(short))).round_ties_even().max(size);
        if scaled <= size {
            return Self { first: 0, count: side as u32, start: 0.0, length: side };
        }
        let step = side / scaled;
        let (start, length) = (((scaled - size) / 2.0).floor() * step, size * step);
        let reach = 2.0 * step.max(1.0) + 1.0;
        let first = (start - reach).floor().max(0.0);
        let end = (start + length + reach).ceil().min(side);
        Self { first: first as u32, count: (end - first) as u32, start: start - first, length }
    }
}

fn halve_while_large(mut picture: RgbImage, size: u32) -> RgbImage {
    while u64::from(picture.width().min(picture.height())) >= 2 * u64::from(size) {
        picture = halve(&picture);
    }
    picture
}

/// Returns the dimensions at which the short side equals `size`. Like ADM, multiplies in f64 and rounds half to even,
/// as Python does.
fn scaled_to_short_side((width, height): (u32, u32), size: u32) -> (u32, u32) {
    let scale = f64::from(size) / f64::from(width.min(height));
    let scaled = |side: u32| ((f64::from(side) * scale).round_ties_even() as u32).max(size);
    (scaled(width), scaled(height))
}

/// Resamples bicubically like Pillow's `Image.resize`: first all rows, rounded to 8 bits, then all columns.
/// fast_image_resize uses the opposite order by default, which differs by up to 13 grey levels at hard edges. (Pillow
/// uses it since version 13 if the picture is tall.)
fn resample(picture: RgbImage, width: u32, height: u32) -> Result<RgbImage, CropError> {
    let rows = picture.height();
    resample_one_axis(resample_one_axis(picture, width, rows)?, width, height)
}

/// Resamples either the width or the height. Returns the picture unchanged if it already has the target size.
fn resample_one_axis(picture: RgbImage, width: u32, height: u32) -> Result<RgbImage, CropError> {
    if picture.dimensions() == (width, height) {
        return Ok(picture);
    }
    resample_with(&picture, width, height, ResizeOptions::new())
}

fn resample_with(picture: &RgbImage, width: u32, height: u32, options: ResizeOptions) -> Result<RgbImage, CropError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| CropError::Resample { width, height, source };
    let from = ImageRef::new(picture.width(), picture.height(), picture.as_raw(), PixelType::U8x3)
        .map_err(|source| failed(Box::new(source)))?;
    let mut to = Image::new(width, height, PixelType::U8x3);
    let options = options.resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
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

    /// A picture without any regularity.
    fn noise(width: u32, height: u32) -> RgbImage {
        let mut state = 1u64;
        RgbImage::from_fn(width, height, |_, _| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            image::Rgb([(state >> 40) as u8, (state >> 48) as u8, (state >> 56) as u8])
        })
    }

    #[test]
    fn scaling_only_the_kept_part_is_within_one_level_of_scaling_everything() {
        let shapes =
            [(1, 16), (1, 47), (2, 95), (3, 50), (5, 81), (7, 200), (9, 145), (31, 700), (4, 4), (6, 7), (12, 17)];
        for (short, long) in shapes {
            for (width, height) in [(short, long), (long, short)] {
                for size in [1, 2, 7, 16, 30] {
                    let halved = halve_while_large(noise(width, height), size);
                    let part = scale_kept(&halved, size).expect("scale the part");
                    let all = scale_all(halved, size).expect("scale all");
                    let worst = part.iter().zip(all.iter()).map(|(part, all)| part.abs_diff(*all)).max();
                    assert!(worst <= Some(1), "{width}x{height} to {size}: {worst:?}");
                }
            }
        }
    }

    #[test]
    fn an_extreme_picture_takes_no_more_memory_than_it_has() {
        // Scaled as a whole, the first of these would have 256 x 51,200,000 pixels.
        for (width, height) in [(1, 200_000), (30_000, 1), (2, 65_535), (65_535, 2), (1, 1), (10_000, 3)] {
            let picture = RgbImage::from_fn(width, height, |x, y| {
                let is_centre =
                    width.abs_diff(2 * x + 1) <= 1 + width / 2 && height.abs_diff(2 * y + 1) <= 1 + height / 2;
                image::Rgb([if is_centre { 200 } else { 10 }, 7, 9])
            });
            let cropped = center_crop(picture, 256).expect("crop");
            assert_eq!(cropped.dimensions(), (256, 256));
            assert!(cropped.pixels().all(|pixel| pixel.0 == [200, 7, 9]), "{width}x{height}");
        }
    }
}
