//! Tests of the rule by which files in folders and tar files get their classes.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use arinar_data::sources::{FileKind, InputFiles, SourceError};
use arinar_tests::programs::program;
use arinar_tests::support::data::{gnu_tar, labelled_names, picture_tree, succeeded, text, tiny_vae};

fn open(paths: &[&Path]) -> Result<InputFiles, SourceError> {
    let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
    InputFiles::open(&paths, FileKind::PICTURES)
}

fn message(paths: &[&Path]) -> String {
    open(paths).unwrap_err().to_string()
}

#[test]
fn the_embedded_dataset_has_1906_pictures_in_9_classes() {
    let tar = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/noto-emoji-32.tar");
    let files = open(&[&tar]).unwrap();
    assert_eq!((files.len(), files.classes().len()), (1906, 9));
    assert_eq!((&*files.name(0), files.label(0)), ("activities/1f004.png", 0));
    assert!(files.read(1905).unwrap().starts_with(b"\x89PNG"));
    assert_eq!(files.notes(), [] as [&str; 0]);
}

#[test]
fn skipped_files_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    picture_tree(&tree, 12);
    std::fs::write(tree.join("README.md"), "no picture").unwrap();
    std::fs::write(tree.join("apes/labels.txt"), "no picture").unwrap();
    std::fs::write(tree.join("apes/.hidden.png"), "no picture").unwrap();
    // Jupyter leaves such folders behind. torchvision makes a class of it.
    std::fs::create_dir(tree.join(".ipynb_checkpoints")).unwrap();
    std::fs::copy(tree.join("apes/0001.png"), tree.join(".ipynb_checkpoints/0001-checkpoint.png")).unwrap();
    let tar = folder.path().join("tree.tar");
    gnu_tar(&tar, &tree, &["."]);
    for input in [&tree, &tar] {
        let files = open(&[input]).unwrap();
        assert_eq!((files.classes(), files.len()), (&["apes".to_owned(), "birds".to_owned()][..], 12));
        let notes = files.notes().join("\n");
        assert!(notes.contains("files that are not pictures are skipped: "), "{notes}");
        assert!(notes.contains("hidden files and folders are skipped: "), "{notes}");
        assert!(notes.contains(input.to_str().unwrap()), "{notes}");
    }
}

#[test]
fn a_class_without_pictures_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    for (what, found) in
        [("empty", "it is empty"), ("avif", ".avif files: 2"), ("hidden", "it is empty"), ("deep", "it is empty")]
    {
        let tree = folder.path().join(what);
        picture_tree(&tree, 6);
        // It sorts before `birds`, whose label it would change if it were left out.
        let class = tree.join("bats");
        std::fs::create_dir(&class).unwrap();
        match what {
            "avif" => ["a.avif", "b.avif"].iter().for_each(|name| std::fs::write(class.join(name), "x").unwrap()),
            "hidden" => std::fs::write(class.join(".DS_Store"), "x").unwrap(),
            "deep" => std::fs::create_dir_all(class.join("x/y")).unwrap(),
            _ => {}
        }
        let tar = folder.path().join(format!("{what}.tar"));
        gnu_tar(&tar, &tree, &["."]);
        for input in [&tree, &tar] {
            let message = message(&[input]);
            for part in ["class bats", found, "renumber", input.to_str().unwrap()] {
                assert!(message.contains(part), "{part:?} is not in {message}");
            }
        }
        std::fs::copy(tree.join("apes/0001.png"), class.join("1.png")).unwrap();
        assert_eq!(open(&[&tree]).unwrap().classes(), ["apes", "bats", "birds"]);
    }
}

#[test]
fn tar_files_of_one_class_are_the_same_dataset_as_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    // Members of different classes have the same names.
    for (class, count) in [("birds", 3), ("apes", 2)] {
        std::fs::create_dir_all(tree.join(class)).unwrap();
        for index in 0..count {
            std::fs::write(tree.join(format!("{class}/{index}.png")), format!("{class} {index}")).unwrap();
        }
        gnu_tar(&folder.path().join(format!("{class}.tar")), &tree.join(class), &["."]);
    }
    let [birds, apes] = ["birds.tar", "apes.tar"].map(|name| folder.path().join(name));
    // ImageNet is distributed as one tar file that contains a tar file per class.
    let nested = folder.path().join("ILSVRC2012_img_train.tar");
    gnu_tar(&nested, folder.path(), &["birds.tar", "apes.tar"]);
    let unpacked = folder.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    for tar in [&birds, &apes] {
        std::fs::copy(tar, unpacked.join(tar.file_name().unwrap())).unwrap();
    }
    let expected = open(&[&tree]).unwrap();
    assert_eq!(labelled_names(&expected)[1..3], [("apes/1.png".to_owned(), 0), ("birds/0.png".to_owned(), 1)]);
    for inputs in [vec![&*birds, &*apes], vec![&*apes, &*birds], vec![&*nested], vec![&*unpacked]] {
        let files = open(&inputs).unwrap();
        assert_eq!((files.classes(), labelled_names(&files)), (expected.classes(), labelled_names(&expected)));
        for index in 0..files.len() {
            assert_eq!(files.read(index).unwrap(), expected.read(index).unwrap(), "{inputs:?} {index}");
        }
    }
}

#[test]
fn names_that_are_not_utf8_stay_apart() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    for name in [&b"caf\xe8"[..], b"caf\xe9", "caf\u{e9}".as_bytes()] {
        let class = tree.join(OsStr::from_bytes(name));
        std::fs::create_dir_all(&class).unwrap();
        std::fs::write(class.join(OsStr::from_bytes(b"\xff.png")), name).unwrap();
    }
    let tar = folder.path().join("tree.tar");
    gnu_tar(&tar, &tree, &["."]);
    for input in [&tree, &tar] {
        let files = open(&[input]).unwrap();
        assert_eq!(files.classes(), ["caf\u{e9}", "caf\\xe8", "caf\\xe9"]);
        assert_eq!(&*files.name(2), "caf\\xe9/\\xff.png");
        assert_eq!(files.read(2).unwrap(), b"caf\xe9");
    }
    // A folder may have the very name that another one is shown by.
    std::fs::create_dir(tree.join("caf\\xe9")).unwrap();
    std::fs::write(tree.join("caf\\xe9/1.png"), "").unwrap();
    assert!(message(&[&tree]).contains("two classes are named caf\\xe9"), "{}", message(&[&tree]));
}

#[test]
fn links_are_followed_but_loops_are_not() {
    let folder = tempfile::tempdir().unwrap();
    picture_tree(&folder.path().join("real"), 3);
    let tree = folder.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    symlink(folder.path().join("real/apes"), tree.join("linked")).unwrap();
    symlink(&tree, folder.path().join("real/apes/loop")).unwrap();
    let files = open(&[&tree]).unwrap();
    assert_eq!(labelled_names(&files), [("linked/0001.png".to_owned(), 0), ("linked/0002.png".to_owned(), 0)]);
    assert!(files.notes()[0].contains("links to a folder that contains them are skipped: linked/loop"));
}

#[test]
fn unusable_sources_have_clear_errors() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    picture_tree(&tree, 3);
    let tar = folder.path().join("tree.tar");
    gnu_tar(&tar, &tree, &["."]);
    assert!(message(&[&folder.path().join("nowhere")]).contains("nowhere"));
    assert!(message(&[&tree, &tar]).contains("apes/0001.png exists twice"));
    assert!(message(&[&tree.join("apes")]).contains("is not in a class folder"));
    assert!(message(&[Path::new("/dev/null")]).contains("neither a folder nor a regular file"));
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(message(&[&empty]).contains("no pictures"));
    symlink("/nowhere/at/all", tree.join("zebras")).unwrap();
    let found = message(&[&tree]);
    assert!(found.contains("zebras is a link to /nowhere/at/all, which cannot be read"), "{found}");
    std::fs::remove_file(tree.join("zebras")).unwrap();
    assert!(
        message(&[&tree.join("apes/0001.png")])
            .contains("is not a tar file: it is a single input file; give the folder")
    );
    for (option, what) in [("-z", "gzip"), ("-j", "bzip2"), ("-J", "xz")] {
        let packed = folder.path().join("packed.tar");
        gnu_tar(&packed, &tree, &[option, "."]);
        assert!(
            message(&[&packed]).contains(&format!("packed.tar is not a tar file: it is compressed with {what}")),
            "{}",
            message(&[&packed])
        );
    }
    let pointer = folder.path().join("shard.tar");
    std::fs::write(&pointer, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n".repeat(12)).unwrap();
    assert!(message(&[&pointer]).contains("shard.tar is not a tar file: it is a pointer of Git LFS"));
    let garbage = folder.path().join("garbage.tar");
    std::fs::write(&garbage, [7; 2000]).unwrap();
    let found = message(&[&garbage]);
    assert!(found.contains("is not a readable tar file") && !found.contains(char::is_control), "{found:?}");
    let bytes = std::fs::read(&tar).unwrap();
    std::fs::write(&tar, &bytes[..bytes.len() / 2 - 300]).unwrap();
    assert!(message(&[&tar]).contains("not a readable tar file"), "{}", message(&[&tar]));
}

#[test]
fn there_may_be_more_tar_files_than_open_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("pictures")).unwrap();
    image::RgbImage::from_pixel(8, 8, image::Rgb([9, 8, 7])).save(path("pictures/0.png")).unwrap();
    std::fs::create_dir(path("tars")).unwrap();
    gnu_tar(&path("tars/000.tar"), &path("pictures"), &["0.png"]);
    for index in 1..200 {
        std::fs::copy(path("tars/000.tar"), path(&format!("tars/{index:03}.tar"))).unwrap();
    }
    tiny_vae(&path("vae.safetensors"));
    let output = Command::new("prlimit")
        .arg("--nofile=128:128")
        .arg(program("arinar-data"))
        .args(["encode", "--image-size=8", "--images", text(&path("tars")), "--vae", text(&path("vae.safetensors"))])
        .args(["--out", text(&path("out"))])
        .output()
        .unwrap();
    assert!(succeeded(&output).contains("200 pictures of 200 classes"));
}
