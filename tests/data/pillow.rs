//! Compares the decoding and the crop of pictures with Pillow, which loads the pictures for the official code. Scripts in
//! `pillow/` make the pictures when a test runs. ops/bootstrap.sh pins the version of Pillow: it scales rows before
//! columns, whereas Pillow 13 scales the columns of tall pictures first.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use arinar_data::pictures::load_picture;
use arinar_tests::python_server::test_program;

/// Runs a script, which writes to a new folder. Returns the folder, and the words of each line that the script prints.
fn run(script: &str) -> (tempfile::TempDir, Vec<Vec<String>>) {
    let python = test_program("python");
    assert!(python.exists(), "no {}; run ops/bootstrap.sh --tests", python.display());
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/pillow").join(script);
    let output = Command::new(python).args(["-B", "-W", "ignore"]).arg(script).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let words = |line: &str| line.split(' ').map(str::to_owned).collect();
    (folder, printed.lines().map(words).collect())
}

/// Crops the centre of `width` x `height` RGB pixels without scaling.
fn centre(pixels: &[u8], width: usize, height: usize) -> Vec<u8> {
    let size = width.min(height);
    let (left, top) = ((width - size) / 2, (height - size) / 2);
    let rows = pixels.chunks_exact(3 * width).skip(top).take(size);
    rows.flat_map(|row| &row[3 * left..3 * (left + size)]).copied().collect()
}

fn largest_difference(found: &[u8], expected: &[u8]) -> u8 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(found, expected)| found.abs_diff(*expected)).max().unwrap()
}

/// Compares every file that a script lists with Pillow's result. `excused` files are not compared. Returns the number of
/// files that both read and that both refuse.
fn compare(script: &str, suffix: &str, excused: &[&str], tolerance: impl Fn(&str) -> u8) -> [usize; 2] {
    let (folder, cases) = run(script);
    let mut counts = [0, 0];
    let mut wrong = Vec::new();
    for case in cases.iter().filter(|case| !excused.contains(&case[0].as_str())) {
        let file = std::fs::read(folder.path().join(format!("{}{suffix}", case[0]))).unwrap();
        if case[1] == "refused:" {
            counts[1] += 1;
            if load_picture(&file, 16).is_ok() {
                wrong.push(format!("{} is read, and {}", case[0], case[1..].join(" ")));
            }
            continue;
        }
        counts[0] += 1;
        let (width, height): (usize, usize) = (case[1].parse().unwrap(), case[2].parse().unwrap());
        let expected = std::fs::read(folder.path().join(format!("{}.rgb", case[0]))).unwrap();
        // A crop to the short side does not scale.
        match load_picture(&file, width.min(height) as u32) {
            Err(error) => wrong.push(format!("{} {error}", case[0])),
            Ok(found) => {
                let difference = largest_difference(&found, &centre(&expected, width, height));
                if difference > tolerance(&case[0]) {
                    wrong.push(format!("{} differs by {difference} levels", case[0]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} files:\n{}", wrong.len(), wrong.join("\n"));
    counts
}

#[test]
fn jpeg_files_are_decoded_to_the_same_pixels_or_refused_whatever_their_damage() {
    let [read, refused] = compare("jpegs.py", ".jpg", &[], |_| 0);
    assert!(read > 900 && refused > 700, "{read} read, {refused} refused");
}

#[test]
fn other_formats_are_decoded_to_the_same_pixels() {
    let unsupported = [
        // Pillow does not need the last chunk.
        "no-end.png",
        // Grey with alpha, and palettes, are not supported in TIFF files.
        "la.tiff",
        "palette.tiff",
    ];
    // The decoder of TIFF files has another IDCT than libjpeg.
    let [read, refused] = compare("formats.py", "", &unsupported, |name| u8::from(name == "jpeg.tiff"));
    assert!(read > 45 && refused >= 5, "{read} read, {refused} refused");
}

#[test]
fn crops_are_within_one_grey_level() {
    let (folder, cases) = run("crops.py");
    assert!(cases.len() > 35);
    for case in cases {
        let (name, size): (&String, u32) = (&case[0], case[1].parse().unwrap());
        let expected = std::fs::read(folder.path().join(format!("{name}.{size}.rgb"))).unwrap();
        let found = load_picture(&std::fs::read(folder.path().join(name)).unwrap(), size).unwrap();
        let difference = largest_difference(&found, &expected);
        assert!(difference <= 1, "{name} to {size}: {difference} levels");
    }
}
