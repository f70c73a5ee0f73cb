//! Decoded tensors to pictures.

use image::RgbImage;
use tch::{Kind, Tensor};

/// Decoder output, [B, 3, H, W] about in [-1, 1], to B pictures; values outside are clamped.
///
/// # Errors
/// When the tensor is not of that shape or cannot be read.
pub fn to_pictures(decoded: &Tensor) -> Result<Vec<RgbImage>, tch::TchError> {
    let (batch, channels, height, width) = decoded.size4()?;
    if channels != 3 {
        return Err(tch::TchError::Shape(format!("a picture has 3 channels, not {channels}")));
    }
    let levels = ((decoded.f_to_kind(Kind::Float)? + 1.0) * 127.5).round().clamp(0.0, 255.0).to_kind(Kind::Uint8);
    let pixels = levels.permute([0, 2, 3, 1]).contiguous(); // [B, H, W, 3]
    (0..batch)
        .map(|index| {
            let raw = Vec::<u8>::try_from(pixels.get(index).view(-1))?;
            RgbImage::from_raw(width as u32, height as u32, raw)
                .ok_or_else(|| tch::TchError::Shape("picture buffer of the wrong size".to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn black_grey_white_and_beyond() {
        let decoded = Tensor::from_slice(&[-1.0f32, 0.0, 1.0, -3.0, 0.0, 5.0]).view([1, 3, 1, 2]);
        let pictures = to_pictures(&decoded).expect("a valid tensor");
        assert_eq!(pictures.len(), 1);
        assert_eq!(pictures[0].get_pixel(0, 0).0, [0, 255, 128]);
        assert_eq!(pictures[0].get_pixel(1, 0).0, [128, 0, 255]);
    }
}
