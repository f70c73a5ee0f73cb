//! The conversion of decoded tensors to images.

use image::RgbImage;
use tch::{Kind, TchError, Tensor};

/// Converts the output of the decoder, `[B, 3, H, W]` with values in about [-1, 1], to `B` images. Other values are clamped.
///
/// # Errors
/// Returns an error if the tensor has another shape or cannot be read.
pub(crate) fn to_images(decoded: &Tensor) -> Result<Vec<RgbImage>, TchError> {
    let (batch, channels, height, width) = decoded.size4()?;
    if channels != 3 {
        return Err(TchError::Shape(format!("an image has 3 channels, not {channels}")));
    }
    let levels = ((decoded.f_to_kind(Kind::Float)? + 1.0) * 127.5).round().clamp(0.0, 255.0).to_kind(Kind::Uint8);
    let pixels = levels.permute([0, 2, 3, 1]).contiguous(); // [B, H, W, 3]
    (0..batch)
        .map(|index| {
            let raw = Vec::<u8>::try_from(pixels.get(index).view(-1))?;
            RgbImage::from_raw(width as u32, height as u32, raw)
                .ok_or_else(|| TchError::Shape("the buffer of an image has the wrong size".to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn black_grey_white_and_values_out_of_range() {
        let decoded = Tensor::from_slice(&[-1.0f32, 0.0, 1.0, -3.0, 0.0, 5.0]).view([1, 3, 1, 2]);
        let images = to_images(&decoded).expect("a valid tensor");
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].get_pixel(0, 0).0, [0, 255, 128]);
        assert_eq!(images[0].get_pixel(1, 0).0, [128, 0, 255]);
    }
}
