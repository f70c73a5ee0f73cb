//! Tests of listing pictures in folders and tar files.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use arinar_data::pictures::ImageSource;
use arinar_tests::support::data::picture_tree;

fn make_tar(path: &Path, folder: &Path) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    tar.append_dir_all(".", folder).unwrap();
    tar.finish().unwrap();
}

fn names(source: &ImageSource) -> Vec<(String, u32)> {
    (0..source.len()).map(|index| (source.name(index).to_owned(), source.label(index))).collect()
}

#[test]
fn the_embedded_dataset_has_1906_pictures_in_9_classes() {
    let tar = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/noto-emoji-32.tar");
    let source = ImageSource::open(&[tar]).unwrap();
    assert_eq!((source.len(), source.classes().len()), (1906, 9));
    assert_eq!((source.name(0), source.label(0)), ("activities/1f004.png", 0));
    assert!(source.read(1905).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn a_folder_and_its_tar_list_the_same_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    picture_tree(&tree, 12);
    std::fs::write(tree.join("README.md"), "no picture").unwrap();
    std::fs::write(tree.join("apes/.hidden.png"), "no picture").unwrap();
    let tar = folder.path().join("tree.tar");
    make_tar(&tar, &tree);
    let from_tree = ImageSource::open(&[tree]).unwrap();
    let from_tar = ImageSource::open(&[tar]).unwrap();
    assert_eq!(from_tree.classes(), ["apes", "birds"]);
    assert_eq!(names(&from_tree), names(&from_tar));
    assert!(names(&from_tree).is_sorted() && from_tree.len() == 12);
    for index in 0..12 {
        assert_eq!(from_tree.read(index).unwrap(), from_tar.read(index).unwrap());
    }
}

#[test]
fn pictures_at_the_top_of_a_tar_belong_to_the_class_named_by_the_tar() {
    let folder = tempfile::tempdir().unwrap();
    picture_tree(folder.path(), 9);
    for class in ["birds", "apes"] {
        make_tar(&folder.path().join(format!("{class}.tar")), &folder.path().join(class));
    }
    let paths = ["birds.tar", "apes.tar"].map(|name| folder.path().join(name));
    let source = ImageSource::open(&paths).unwrap();
    assert_eq!(source.classes(), ["apes", "birds"]);
    assert_eq!((source.len(), source.name(0), source.label(0)), (9, "0000.png", 1));
}

#[test]
fn links_are_followed_but_loops_are_not() {
    let folder = tempfile::tempdir().unwrap();
    picture_tree(&folder.path().join("real"), 3);
    let tree = folder.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::os::unix::fs::symlink(folder.path().join("real/apes"), tree.join("linked")).unwrap();
    std::os::unix::fs::symlink(&tree, folder.path().join("real/apes/loop")).unwrap();
    let source = ImageSource::open(&[tree]).unwrap();
    assert_eq!(names(&source), [("linked/0001.png".to_owned(), 0), ("linked/0002.png".to_owned(), 0)]);
}

#[test]
fn unusable_sources_have_clear_errors() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    picture_tree(&tree, 3);
    let tar = folder.path().join("tree.tar");
    make_tar(&tar, &tree);
    let message = |paths: &[&Path]| {
        let paths: Vec<_> = paths.iter().map(|path| path.to_path_buf()).collect();
        ImageSource::open(&paths).unwrap_err().to_string()
    };
    assert!(message(&[&folder.path().join("nowhere")]).contains("nowhere"));
    assert!(message(&[&tree, &tar]).contains("apes/0001.png exists twice"));
    assert!(message(&[&tree.join("apes")]).contains("is not in a class folder"));
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(message(&[&empty]).contains("no pictures"));
    let bytes = std::fs::read(&tar).unwrap();
    std::fs::write(&tar, &bytes[..bytes.len() / 2 - 300]).unwrap();
    assert!(message(&[&tar]).contains("not a readable tar file"), "{}", message(&[&tar]));
}
