//! Tests of WebDataset shards. The fixtures were written by the webdataset library (tests/fixtures/webdataset/make.py).

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use arinar_data::sources::{FileKind, InputFiles, SourceError};
use arinar_tests::support::data::{gnu_tar, labelled_names};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/webdataset").join(name)
}

fn open(paths: &[PathBuf]) -> Result<InputFiles, SourceError> {
    InputFiles::open(paths, FileKind::PICTURES)
}

/// Class of picture i in the fixtures.
fn class(index: u32) -> u32 {
    index * 5 % 11
}

/// Returns the red level of picture `index`, of which the fixtures give 20 to the picture in the list's place 1.
fn red(files: &InputFiles, index: usize) -> u8 {
    image::load_from_memory(&files.read(index).unwrap()).unwrap().into_rgb8().get_pixel(0, 0).0[0]
}

#[test]
fn class_numbers_are_labels() {
    for kind in ["ints", "json"] {
        let files = open(&[1, 0].map(|shard| fixture(&format!("{kind}-{shard:06}.tar")))).unwrap();
        let expected: Vec<(String, u32)> =
            (0..7).map(|index| (format!("{kind}-{:06}/{index:04}.png", index / 4), class(index))).collect();
        assert_eq!(labelled_names(&files), expected);
        // A label is the number, not the rank of "10" among "0", "10", "3" and so on.
        let numbers: Vec<String> = (0..=10).map(|number: u32| number.to_string()).collect();
        assert_eq!(files.classes(), numbers);
        assert!((0..7).all(|index| red(&files, index) == 20 * index as u8));
        assert_eq!(files.notes(), ["there are no pictures of these classes: 1, 2, 6, 7"]);
    }
}

#[test]
fn class_names_are_sorted_and_cls_precedes_json() {
    let files = open(&[0, 1].map(|shard| fixture(&format!("names-{shard:06}.tar")))).unwrap();
    assert_eq!(files.classes(), [0, 3, 4, 5, 8, 9, 10].map(|number: u32| format!("n{number:08}")));
    let labels: Vec<u32> = labelled_names(&files).into_iter().map(|(_, label)| label).collect();
    assert_eq!(labels, [0, 3, 6, 2, 5, 1, 4]);
}

#[test]
fn a_folder_of_shards_is_one_dataset() {
    let folder = tempfile::tempdir().unwrap();
    for shard in ["ints-000000.tar", "ints-000001.tar"] {
        std::fs::copy(fixture(shard), folder.path().join(shard)).unwrap();
    }
    let files = open(&[folder.path().to_path_buf()]).unwrap();
    assert_eq!((files.len(), files.label(6)), (7, class(6)));
}

#[test]
fn extracted_shards_have_the_same_classes() {
    let folder = tempfile::tempdir().unwrap();
    for shard in ["ints-000000", "ints-000001"] {
        let extracted = folder.path().join(shard);
        std::fs::create_dir(&extracted).unwrap();
        let mut archive = tar::Archive::new(std::fs::File::open(fixture(&format!("{shard}.tar"))).unwrap());
        archive.unpack(&extracted).unwrap();
    }
    let expected = open(&[0, 1].map(|shard| fixture(&format!("ints-{shard:06}.tar")))).unwrap();
    let files = open(&[folder.path().to_path_buf()]).unwrap();
    assert_eq!(labelled_names(&files), labelled_names(&expected));
    assert_eq!(files.classes(), expected.classes());
    // The folder of one shard.
    let files = open(&[folder.path().join("ints-000000")]).unwrap();
    assert_eq!(labelled_names(&files)[2], ("0002.png".to_owned(), class(2)));
}

#[test]
fn class_numbers_and_class_folders_do_not_mix() {
    let error = open(&[fixture("ints-000000.tar"), fixture("names-000000.tar")]).unwrap_err().to_string();
    assert!(error.contains("has a class name") && error.contains("a class number"), "{error}");
}

/// Packs members into a tar file and returns the error of reading it.
fn message(members: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let samples = folder.path().join("samples");
    std::fs::create_dir(&samples).unwrap();
    members.iter().for_each(|(name, text)| std::fs::write(samples.join(name), text).unwrap());
    let tar = folder.path().join("shard-000000.tar");
    gnu_tar(&tar, &samples, &["."]);
    match open(&[tar]) {
        Ok(files) => (0..files.len()).filter_map(|index| files.read(index).err()).map(|e| e.to_string()).collect(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn samples_without_a_certain_class_are_refused_by_name() {
    let picture = ("0.jpg", "picture");
    for (members, reason) in [
        // Captions, but no class: the tar file's name is not a class.
        (vec![picture, ("0.txt", "a cat")], "sample 0 has no class"),
        (vec![picture, ("0.json", "{\"caption\": \"a cat\"}")], "cls, label, class in a member .json"),
        (vec![picture, ("0.cls", "1"), ("1.jpg", "other")], "sample 1 has no class"),
        (vec![picture, ("0.cls", "-1")], "class numbers are integers from 0 to 99999"),
        (vec![picture, ("0.cls", "1.5")], "class numbers are integers"),
        (vec![picture, ("0.cls", "")], "sample 0 has an empty class"),
        (vec![picture, ("0.json", "{\"cls\": [1]}")], "neither a number nor a name"),
        (vec![picture, ("0.json", "no json")], "sample 0 has a damaged .json member"),
        (vec![picture, ("0.png", "other"), ("0.cls", "1")], "has two pictures, 0.jpg and 0.png"),
        // The sample is listed, so that it is reported with the damaged pictures.
        (vec![picture, ("0.cls", "1"), ("1.avif", "other"), ("1.cls", "1")], "has no picture with a known suffix"),
    ] {
        let found = message(&members);
        assert!(found.contains(reason), "{members:?}: {found}");
    }
    assert_eq!(message(&[picture, ("0.cls", " 3\n"), ("README.md", "text")]), "");
}
