//! Halving of a picture with a box filter, to the same pixels as Pillow.
//!
//! A pixel of the result is the mean of the pixels whose centres are in its box. If a side is odd, a centre can lie exactly
//! between two boxes. The rounding of Pillow's arithmetic then decides, so that the arithmetic must be the same. The box
//! filter of fast_image_resize decides some of these cases differently, which changes pixels by many grey levels.

use std::ops::Range;

use image::RgbImage;

/// Number of channels of a pixel.
const CHANNELS: usize = 3;

/// Halves the width, and then the height; odd sides are rounded down. Both sides must have at least 2 pixels.
pub(super) fn halve(picture: &RgbImage) -> RgbImage {
    halve_height(&halve_width(picture))
}

fn halve_width(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let boxes = boxes(width);
    let mut halved = RgbImage::new(width / 2, height);
    let rows = picture.chunks_exact(CHANNELS * width as usize);
    for (to, from) in halved.chunks_exact_mut(CHANNELS * boxes.len()).zip(rows) {
        for (pixel, columns) in to.chunks_exact_mut(CHANNELS).zip(&boxes) {
            for (channel, level) in pixel.iter_mut().enumerate() {
                *level = mean(columns.clone().map(|column| from[CHANNELS * column + channel]));
            }
        }
    }
    halved
}

fn halve_height(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let boxes = boxes(height);
    let mut halved = RgbImage::new(width, height / 2);
    let (from, length) = (picture.as_raw(), CHANNELS * width as usize);
    for (to, rows) in halved.chunks_exact_mut(length).zip(boxes) {
        for (column, level) in to.iter_mut().enumerate() {
            *level = mean(rows.clone().map(|row| from[length * row + column]));
        }
    }
    halved
}

/// Returns the mean, rounded to the nearest integer.
fn mean(levels: impl Iterator<Item = u8>) -> u8 {
    let (sum, count) = levels.fold((0, 0), |(sum, count), level| (sum + u32::from(level), count + 1));
    ((2 * sum + count) / (2 * count)) as u8
}

/// Returns the pixels of each box along a side of `side` pixels.
fn boxes(side: u32) -> Vec<Range<usize>> {
    let count = side / 2;
    let scale = f64::from(side) / f64::from(count);
    (0..count).map(|index| pixels_of_box(f64::from(side), scale, (f64::from(index) + 0.5) * scale)).collect()
}

/// Returns the pixels of the box of length `scale` around `centre`. In Pillow, both the bounds of the filter and the filter
/// itself must admit a pixel.
fn pixels_of_box(side: f64, scale: f64, centre: f64) -> Range<usize> {
    let reach = 0.5 * scale;
    let (mut first, mut end) = ((centre - reach + 0.5).floor().max(0.0), (centre + reach + 0.5).floor().min(side));
    let distance = |pixel: f64| (pixel - centre + 0.5) * (1.0 / scale);
    while distance(first) <= -0.5 {
        first += 1.0;
    }
    while distance(end - 1.0) > 0.5 {
        end -= 1.0;
    }
    first as usize..end as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_of_an_even_side_are_pairs() {
        assert_eq!(boxes(4), [0..2, 2..4]);
        assert_eq!(boxes(6), [0..2, 2..4, 4..6]);
    }

    #[test]
    fn boxes_of_an_odd_side_hold_the_centres_within_them() {
        assert_eq!(boxes(3).first(), Some(&(0..3)));
        // Boxes of 7/3 pixels begin at 0, 2.33 and 4.67.
        assert_eq!(boxes(7), [0..2, 2..5, 5..7]);
        for side in 2..3000u32 {
            let (boxes, scale) = (boxes(side), f64::from(side) / f64::from(side / 2));
            assert_eq!(boxes.len(), side as usize / 2);
            for (index, pixels) in boxes.iter().enumerate() {
                let (from, to) = (index as f64 * scale, (index + 1) as f64 * scale);
                let inside = |pixel: usize| pixel as f64 + 0.5 > from - 1e-9 && (pixel as f64 + 0.5) < to + 1e-9;
                assert!(!pixels.is_empty() && pixels.clone().all(inside), "{side}: box {index} is {pixels:?}");
                let missing = |pixel: usize| pixel as f64 + 0.5 > from + 1e-9 && (pixel as f64 + 0.5) < to - 1e-9;
                let before = pixels.start.checked_sub(1).is_some_and(missing);
                assert!(!before && !missing(pixels.end), "{side}: box {index} is {pixels:?}");
            }
        }
    }

    #[test]
    fn means_are_rounded_to_the_nearest_level() {
        let picture = RgbImage::from_raw(3, 2, vec![0, 1, 9, 1, 1, 9, 1, 2, 9, 5, 0, 9, 5, 1, 9, 6, 1, 9]);
        // The rows become (2/3, 4/3, 9) and (16/3, 2/3, 9), rounded to (1, 1, 9) and (5, 1, 9).
        assert_eq!(halve(&picture.expect("six pixels")).into_raw(), [3, 1, 9]);
    }
}
