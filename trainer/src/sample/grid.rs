//! A labelled grid of images: one row per class, with its name on the left.

use std::convert::Infallible;

use embedded_graphics::{
    Drawable, Pixel,
    draw_target::DrawTarget,
    geometry::{OriginDimensions, Point, Size},
    mono_font::{MonoTextStyle, ascii::FONT_7X13},
    pixelcolor::{Rgb888, RgbColor},
    text::{Alignment, Baseline, Text},
};
use image::{
    Rgb, RgbImage,
    imageops::{FilterType, overlay, resize},
};

/// Smaller images are enlarged by an integer factor to at least this width, in pixels.
const MIN_SIDE: u32 = 64;
/// Space between images in pixels.
const GAP: u32 = 4;
/// Width of a character in pixels.
const CHARACTER_WIDTH: u32 = 7;
/// Longer labels are cut. Class names of ImageNet can fill a line.
const MAX_LABEL: usize = 24;

/// A row of the grid.
pub(crate) struct GridRow {
    /// Name of the class.
    pub label: String,
    /// Images of the class, all of the same size.
    pub images: Vec<RgbImage>,
}

/// Draws the rows with their labels on white. Pixels are not interpolated.
pub(crate) fn draw_grid(rows: &[GridRow]) -> RgbImage {
    let side = rows.iter().flat_map(|row| &row.images).map(RgbImage::width).max().unwrap_or(1);
    let factor = MIN_SIDE.div_ceil(side);
    let cell = side * factor + GAP;
    let columns = rows.iter().map(|row| row.images.len()).max().unwrap_or(0) as u32;
    let margin = label_margin(rows);
    let mut canvas =
        Canvas(RgbImage::from_pixel(margin + columns * cell + GAP, rows.len() as u32 * cell + GAP, Rgb([255; 3])));
    for (index, row) in rows.iter().enumerate() {
        let top = GAP + index as u32 * cell;
        canvas.label(&shortened(&row.label), margin, top + (cell - GAP) / 2);
        for (column, image) in row.images.iter().enumerate() {
            let enlarged = resize(image, image.width() * factor, image.height() * factor, FilterType::Nearest);
            overlay(&mut canvas.0, &enlarged, i64::from(margin + column as u32 * cell), i64::from(top));
        }
    }
    canvas.0
}

fn label_margin(rows: &[GridRow]) -> u32 {
    let longest = rows.iter().map(|row| shortened(&row.label).len()).max().unwrap_or(0) as u32;
    longest * CHARACTER_WIDTH + 3 * GAP
}

/// Returns at most [`MAX_LABEL`] characters of a label, with spaces for characters that the font does not have.
fn shortened(label: &str) -> String {
    label.chars().take(MAX_LABEL).map(|c| if c.is_ascii_graphic() { c } else { ' ' }).collect()
}

/// An image that text can be drawn on.
struct Canvas(RgbImage);

impl Canvas {
    /// Writes `text` to the left of the column `right`, vertically centred on the line `middle`.
    fn label(&mut self, text: &str, right: u32, middle: u32) {
        let style = MonoTextStyle::new(&FONT_7X13, Rgb888::new(60, 60, 60));
        let mut text =
            Text::with_baseline(text, Point::new((right - 2 * GAP) as i32, middle as i32), style, Baseline::Middle);
        text.text_style.alignment = Alignment::Right;
        let Ok(_) = text.draw(self);
    }
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(point, color) in pixels {
            if let (Ok(x), Ok(y)) = (u32::try_from(point.x), u32::try_from(point.y))
                && let Some(pixel) = self.0.get_pixel_mut_checked(x, y)
            {
                *pixel = Rgb([color.r(), color.g(), color.b()]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(label: &str, count: usize) -> GridRow {
        GridRow { label: label.to_owned(), images: vec![RgbImage::from_pixel(32, 32, Rgb([200, 10, 10])); count] }
    }

    #[test]
    fn small_images_are_enlarged_and_labelled() {
        let grid = draw_grid(&[row("cats", 3), row("dogs", 2)]);
        let margin = 4 * CHARACTER_WIDTH + 3 * GAP;
        assert_eq!(grid.dimensions(), (margin + 3 * 68 + GAP, 2 * 68 + GAP));
        assert_eq!(grid.get_pixel(margin, GAP), &Rgb([200, 10, 10]));
        let ink = |top: u32| {
            (top..top + 64)
                .flat_map(|y| (0..margin).map(move |x| (x, y)))
                .filter(|&(x, y)| grid.get_pixel(x, y).0[0] < 128)
                .count()
        };
        assert!(ink(GAP) > 20 && ink(GAP + 68) > 20, "each row has a label");
    }

    #[test]
    fn long_and_non_ascii_labels_are_cut_and_replaced() {
        let grid = draw_grid(&[row("ünï\u{1f600} a name that goes on and on and on", 1)]);
        assert_eq!(grid.width(), 24 * CHARACTER_WIDTH + 3 * GAP + 68 + GAP);
    }
}
