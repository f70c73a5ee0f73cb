//! Compares ADM's crop with Pillow. fixtures/crop/make.py made the pictures.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;

use arinar_data::pictures::load_picture;
use arinar_tests::programs::program;
use arinar_tests::support::data::{exit_status, text, tiny_vae};
use image::RgbImage;

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

#[test]
fn pictures_of_extreme_shapes_are_encoded_and_pictures_that_claim_too_many_pixels_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let class = folder.path().join("pictures/class");
    std::fs::create_dir_all(&class).unwrap();
    for (width, height) in [(1, 30_000), (30_000, 1), (2, 65_535), (1_000_000, 1), (1, 1_000_000), (1, 1)] {
        RgbImage::new(width, height).save(class.join(format!("{width}x{height}.png"))).unwrap();
    }
    let vae = folder.path().join("vae.safetensors");
    tiny_vae(&vae);
    let images = folder.path().join("pictures");
    let encode = |out: &str, more: &[&str]| {
        let out = folder.path().join(out);
        let fixed = ["encode", "--images", text(&images), "--vae", text(&vae), "--out", text(&out), "--image-size=64"];
        // Scaling all of the longest pictures would need 12 GB.
        let limited = Command::new("prlimit")
            .arg("--data=6000000000")
            .arg(program("arinar-data"))
            .args(fixed)
            .args(more)
            .output();
        exit_status(&limited.unwrap())
    };
    let (code, _, stderr) = encode("extreme", &[]);
    assert_eq!(code, 0, "{stderr}");
    let header = |width: u32, height: u32| {
        [
            b"BM",
            &[0; 8][..],
            &[54, 0, 0, 0, 40, 0, 0, 0],
            &width.to_le_bytes(),
            &height.to_le_bytes(),
            &[1, 0, 24, 0],
            &[0; 24],
        ]
        .concat()
    };
    std::fs::write(class.join("bomb.bmp"), header(60_000, 60_000)).unwrap();
    let (code, _, stderr) = encode("bomb", &[]);
    assert_ne!(code, 0, "{stderr}");
    let problem = "has 60000x60000 pixels, more than the limit of 178956970; scale it down";
    assert!(stderr.contains("class/bomb.bmp") && stderr.contains(problem), "{stderr}");
    let (code, stdout, stderr) = encode("bomb", &["--skip-bad"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("class/bomb.bmp") && stdout.contains("6 pictures"), "{stdout}");
}
