//! PNG files that say which program wrote them, so that it replaces its own pictures and no others.

use std::io::{BufReader, Cursor};

use image::RgbImage;
use png::{BitDepth, ColorType, Decoder, Encoder, EncodingError};

/// Keyword of the text chunk for the program, from the PNG specification.
const KEYWORD: &str = "Software";
const PROGRAM: &str = "arinar-sample";

/// A picture as the bytes of a PNG file.
///
/// # Errors
/// A picture without pixels.
pub fn encode(picture: &RgbImage) -> Result<Vec<u8>, EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.add_text_chunk(KEYWORD.to_owned(), format!("{PROGRAM} {}", env!("CARGO_PKG_VERSION")))?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

/// Whether a file that begins with `start` was written by [`encode`]. The text comes before the pixels, so that the
/// first hundred bytes are enough.
pub fn is_ours(start: &[u8]) -> bool {
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
    fn a_picture_comes_back_and_is_known_by_its_beginning() {
        let picture = RgbImage::from_fn(7, 3, |x, y| Rgb([x as u8 * 30, y as u8 * 80, 9]));
        let bytes = encode(&picture).unwrap();
        assert_eq!(image::load_from_memory(&bytes).unwrap().to_rgb8(), picture);
        assert!(is_ours(&bytes) && is_ours(&bytes[..100]));
        let mut other = Vec::new();
        picture.write_to(&mut Cursor::new(&mut other), ImageFormat::Png).unwrap();
        assert!(!is_ours(&other) && !is_ours(b"") && !is_ours(&bytes[..30]) && !is_ours(b"a photograph"));
    }
}
