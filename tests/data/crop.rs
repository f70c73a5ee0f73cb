//! Compares ADM's crop with Pillow. fixtures/crop/make.py made the pictures.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use arinar_data::pictures::load_picture;

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/crop").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the largest difference in grey levels between our crop of `input` and Pillow's result.
fn difference(input: &str, expected: &str) -> u8 {
    let expected = image::load_from_memory(&fixture(expected)).unwrap().into_rgb8();
    let found = load_picture(&fixture(input), expected.width()).unwrap();
    assert_eq!(found.dimensions(), expected.dimensions());
    found.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn halving_then_bicubic_is_within_one_grey_level_of_pillow() {
    assert!(difference("large.png", "large-64.png") <= 1);
    assert!(difference("large.png", "large-96.png") <= 1);
}

#[test]
fn bicubic_alone_is_within_one_grey_level_of_pillow() {
    assert!(difference("large.png", "large-200.png") <= 1);
}

#[test]
fn enlarging_is_within_one_grey_level_of_pillow() {
    assert!(difference("small.png", "small-64.png") <= 1);
}

#[test]
fn cmyk_is_converted_to_rgb_as_by_pillow() {
    assert!(difference("cmyk.jpg", "cmyk-16.png") <= 2);
}

#[test]
fn sixteen_bit_pictures_are_reduced_to_eight_bits() {
    let picture = load_picture(&fixture("grey16.png"), 16).unwrap();
    assert!(picture.pixels().all(|pixel| pixel.0 == [0x4d; 3]));
}
