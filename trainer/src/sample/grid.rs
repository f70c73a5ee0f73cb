//! A labelled grid: one row per class, its name on the left.

use std::convert::Infallible;

use embedded_graphics::Drawable;
use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::{MonoTextStyle, ascii::FONT_7X13};
use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
use embedded_graphics::text::{Alignment, Baseline, Text};
use image::imageops::{FilterType, overlay, resize};
use image::{Rgb, RgbImage};

/// Pictures smaller than this side are enlarged by a whole factor, so that a grid can be looked at.
const SMALLEST_SIDE: u32 = 64;
const GAP: u32 = 4;
const CHARACTER_WIDTH: u32 = 7;
/// Longer names are cut: ImageNet's can fill a line.
const LONGEST_LABEL: usize = 24;

/// One row of the grid.
pub struct Row {
    /// Name of the class.
    pub label: String,
    /// Its pictures, all of one size.
    pub pictures: Vec<RgbImage>,
}

/// Draws the rows on white, each with its label; pictures keep their pixels, enlarged by a whole factor.
pub fn draw(rows: &[Row]) -> RgbImage {
    let side = rows.iter().flat_map(|row| &row.pictures).map(RgbImage::width).max().unwrap_or(1);
    let factor = SMALLEST_SIDE.div_ceil(side);
    let cell = side * factor + GAP;
    let columns = rows.iter().map(|row| row.pictures.len()).max().unwrap_or(0) as u32;
    let margin = label_margin(rows);
    let mut canvas =
        Canvas(RgbImage::from_pixel(margin + columns * cell + GAP, rows.len() as u32 * cell + GAP, Rgb([255; 3])));
    for (index, row) in rows.iter().enumerate() {
        let top = GAP + index as u32 * cell;
        canvas.label(&shortened(&row.label), margin, top + (cell - GAP) / 2);
        for (column, picture) in row.pictures.iter().enumerate() {
            let enlarged = resize(picture, picture.width() * factor, picture.height() * factor, FilterType::Nearest);
            overlay(&mut canvas.0, &enlarged, i64::from(margin + column as u32 * cell), i64::from(top));
        }
    }
    canvas.0
}

fn label_margin(rows: &[Row]) -> u32 {
    let longest = rows.iter().map(|row| shortened(&row.label).len()).max().unwrap_or(0) as u32;
    longest * CHARACTER_WIDTH + 3 * GAP
}

/// The label in the font's ASCII, cut to [`LONGEST_LABEL`] characters.
fn shortened(label: &str) -> String {
    label.chars().take(LONGEST_LABEL).map(|c| if c.is_ascii_graphic() { c } else { ' ' }).collect()
}

/// An RGB picture that text can be drawn on.
struct Canvas(RgbImage);

impl Canvas {
    /// Writes `text` so that it ends left of `right`, centred on the line `middle`.
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

    fn row(label: &str, count: usize) -> Row {
        Row { label: label.to_owned(), pictures: vec![RgbImage::from_pixel(32, 32, Rgb([200, 10, 10])); count] }
    }

    #[test]
    fn small_pictures_are_enlarged_and_labelled() {
        let grid = draw(&[row("cats", 3), row("dogs", 2)]);
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
    fn long_or_foreign_labels_do_not_break_the_grid() {
        let grid = draw(&[row("ünï\u{1f600} a name that goes on and on and on", 1)]);
        assert_eq!(grid.width(), 24 * CHARACTER_WIDTH + 3 * GAP + 68 + GAP);
    }
}
