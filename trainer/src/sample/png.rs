//! PNG files that name the program that wrote them, so that it can recognize its own images.

use std::io::{BufReader, Cursor};

use image::RgbImage;
use png::{BitDepth, ColorType, Decoder, Encoder, EncodingError};

/// Keyword of the text chunk that names the program, from the PNG specification.
const KEYWORD: &str = "Software";
const PROGRAM: &str = "arinar-sample";

/// Encodes an image as a PNG file.
///
/// # Errors
/// Returns an error if the image has no pixels.
pub(crate) fn encode(image: &RgbImage) -> Result<Vec<u8>, EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.add_text_chunk(KEYWORD.to_owned(), format!("{PROGRAM} {}", env!("CARGO_PKG_VERSION")))?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

/// Returns true if a file that begins with `start` was written by [`encode`]. The first hundred bytes are enough, because the
/// text chunk precedes the pixels.
pub(crate) fn is_ours(start: &[u8]) -> bool {
    let Ok(reader) = Decoder::new(BufReader::new(Cursor::new(start))).read_info() else { return false };
    let mut texts = reader.info().uncompressed_latin1_text.iter();
    texts.any(|chunk| chunk.keyword == KEYWORD && chunk.text.split(' ').next() == Some(PROGRAM))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use image::{ImageFormat, Rgb};

    #[test]
    fn an_encoded_image_is_recognized_by_its_first_bytes() {
        let image = RgbImage::from_fn(7, 3, |x, y| Rgb([x as u8 * 30, y as u8 * 80, 9]));
        let bytes = encode(&image).unwrap();
        assert_eq!(image::load_from_memory(&bytes).unwrap().to_rgb8(), image);
        assert!(is_ours(&bytes) && is_ours(&bytes[..100]));
        let mut other = Vec::new();
        image.write_to(&mut Cursor::new(&mut other), ImageFormat::Png).unwrap();
        assert!(!is_ours(&other) && !is_ours(b"") && !is_ours(&bytes[..30]) && !is_ours(b"a photograph"));
    }
}
