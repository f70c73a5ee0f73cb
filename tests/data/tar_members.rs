//! Tests of tar files with members that are not plain files, made by GNU tar and by hand.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use arinar_data::sources::{FileKind, InputFiles};
use arinar_tests::support::data::{gnu_tar, labelled_names};

/// A tree of one picture per class, and the tar files made of it.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for class in ["a", "b"] {
            std::fs::create_dir_all(folder.path().join("tree").join(class)).unwrap();
            std::fs::write(folder.path().join(format!("tree/{class}/0.png")), format!("picture of {class}")).unwrap();
        }
        Self { folder }
    }

    fn tree(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    fn tar(&self, arguments: &[&str]) -> PathBuf {
        let tar = self.folder.path().join("made.tar");
        gnu_tar(&tar, &self.tree(), arguments);
        tar
    }
}

fn open(tar: &Path) -> InputFiles {
    InputFiles::open(&[tar.to_path_buf()], FileKind::PICTURES).unwrap()
}

fn message(tar: &Path) -> String {
    InputFiles::open(&[tar.to_path_buf()], FileKind::PICTURES).unwrap_err().to_string()
}

/// Returns the names of all files and their contents, or why they cannot be read.
fn contents(files: &InputFiles) -> Vec<(String, String)> {
    let read = |index| match files.read(index) {
        Ok(bytes) => String::from_utf8(bytes).unwrap(),
        Err(error) => error.to_string(),
    };
    (0..files.len()).map(|index| (files.name(index).into_owned(), read(index))).collect()
}

#[test]
fn hard_links_are_pictures_in_every_format() {
    let work = Fixture::new();
    std::fs::create_dir(work.tree().join("c")).unwrap();
    std::fs::hard_link(work.tree().join("a/0.png"), work.tree().join("c/1.png")).unwrap();
    for format in ["--format=gnu", "--format=pax", "--format=ustar", "--format=v7"] {
        // GNU tar stores whichever name comes first as the file.
        for order in [["a", "b", "c"], ["c", "b", "a"]] {
            let files = open(&work.tar(&[&[format][..], &order].concat()));
            let found = contents(&files);
            assert_eq!(files.classes(), ["a", "b", "c"]);
            assert_eq!(found[2], ("c/1.png".to_owned(), "picture of a".to_owned()), "{format}");
        }
    }
}

#[test]
fn a_hard_link_stands_for_the_contents_at_its_place() {
    let mut builder = tar::Builder::new(Vec::new());
    let file = |builder: &mut tar::Builder<Vec<u8>>, path: &str, text: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    };
    let link = |builder: &mut tar::Builder<Vec<u8>>, kind, path: &str, target: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, path, target).unwrap();
    };
    file(&mut builder, "a/0.png", "old");
    link(&mut builder, tar::EntryType::Link, "a/1.png", "./a/0.png");
    file(&mut builder, "a/0.png", "new");
    link(&mut builder, tar::EntryType::Symlink, "a/2.png", "0.png");
    link(&mut builder, tar::EntryType::Link, "a/3.png", "a/9.png");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made.tar");
    std::fs::write(&path, builder.into_inner().unwrap()).unwrap();
    let files = open(&path);
    let texts: Vec<String> = contents(&files).into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts[..3], ["new", "old", "new"]);
    assert_eq!(texts[3], "is a hard link to a/9.png, which the tar file does not hold before it");
    assert!(files.notes().concat().contains("members are replaced by later ones of the same name: a/0.png"));
}

#[test]
fn symbolic_links_are_followed_within_the_archive() {
    let work = Fixture::new();
    symlink("../a/0.png", work.tree().join("b/1.png")).unwrap();
    symlink("1.png", work.tree().join("b/2.png")).unwrap();
    symlink("a", work.tree().join("c")).unwrap();
    symlink("../b", work.tree().join("a/deeper")).unwrap();
    let expected = [
        ("a/0.png", "picture of a"),
        ("a/deeper/0.png", "picture of b"),
        ("a/deeper/1.png", "picture of a"),
        ("a/deeper/2.png", "picture of a"),
        ("b/0.png", "picture of b"),
        ("b/1.png", "picture of a"),
        ("b/2.png", "picture of a"),
        ("c/0.png", "picture of a"),
        ("c/deeper/0.png", "picture of b"),
        ("c/deeper/1.png", "picture of a"),
        ("c/deeper/2.png", "picture of a"),
    ]
    .map(|(name, text)| (name.to_owned(), text.to_owned()));
    for input in [work.tree(), work.tar(&["."])] {
        let files = open(&input);
        assert_eq!(contents(&files), expected);
        assert_eq!(files.classes(), ["a", "b", "c"]);
    }
}

#[test]
fn links_out_of_the_archive_and_special_files_are_unreadable_pictures() {
    let work = Fixture::new();
    let outside = work.folder.path().join("outside.png");
    std::fs::write(&outside, "outside").unwrap();
    symlink(&outside, work.tree().join("a/1.png")).unwrap();
    symlink("../../../x.png", work.tree().join("a/2.png")).unwrap();
    symlink("3.png", work.tree().join("a/3.png")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, work.tree().join("a/4.png"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let sparse = std::fs::File::create(work.tree().join("a/5.png")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    for format in ["--format=gnu", "--format=pax"] {
        let found = contents(&open(&work.tar(&[format, "--sparse", "."])));
        let reasons: Vec<&str> = found[1..6].iter().map(|(_, text)| text.as_str()).collect();
        assert!(reasons[0].contains("outside.png, which the tar file does not hold"), "{reasons:?}");
        assert!(reasons[1].contains("../../../x.png, which the tar file does not hold"), "{reasons:?}");
        assert!(reasons[2].contains("is a link to 3.png, which the tar file does not hold"), "{reasons:?}");
        assert_eq!(reasons[3], "is a named pipe, not a regular file");
        assert!(reasons[4].contains("sparse"), "{reasons:?}");
    }
    // A link in the place of a class may stand for many pictures.
    symlink("/nowhere", work.tree().join("c")).unwrap();
    let found = message(&work.tar(&["."]));
    assert!(found.contains("c is a link to /nowhere, which the tar file does not hold"), "{found}");
}

#[test]
fn paths_out_of_the_archive_are_refused() {
    let work = Fixture::new();
    let absolute = work.tree().join("a");
    let found = message(&work.tar(&["-P", absolute.to_str().unwrap()]));
    assert!(found.contains("a/0.png has an absolute path") || found.contains("a/ has an absolute path"), "{found}");
    let inside = work.folder.path().join("tree/x");
    std::fs::create_dir(&inside).unwrap();
    let tar = work.folder.path().join("made.tar");
    gnu_tar(&tar, &inside, &["-P", "../a", "../b"]);
    let found = message(&tar);
    assert!(found.contains("../a/ has a path with `..`") && found.contains("tar -C"), "{found}");
}

#[test]
fn pictures_on_two_levels_are_refused() {
    let work = Fixture::new();
    std::fs::write(work.tree().join("top.png"), "top").unwrap();
    let found = message(&work.tar(&["."]));
    assert!(found.contains("class folders and, at its top level, top.png"), "{found}");
    let only = work.tar(&["top.png"]);
    assert_eq!(labelled_names(&open(&only)), [("made/top.png".to_owned(), 0)]);
}

#[test]
fn concatenated_and_truncated_archives_are_noticed() {
    let work = Fixture::new();
    let tar = work.tar(&["a"]);
    let first = std::fs::read(&tar).unwrap();
    let second = std::fs::read(work.tar(&["b"])).unwrap();
    std::fs::write(&tar, [&first[..], &second].concat()).unwrap();
    let found = message(&tar);
    assert!(found.contains("data after its end marker") && found.contains("one by one"), "{found}");
    // The header and the block of a/, then the header and the block of a/0.png: cut at the end of a member.
    for (length, complete) in [(3 * 512, false), (4 * 512, true), (5 * 512, true), (first.len(), true)] {
        std::fs::write(&tar, &first[..length]).unwrap();
        let notes = open(&tar).notes().concat();
        assert_eq!(!notes.contains("has no end marker and may be truncated"), complete, "{length}: {notes}");
    }
    for length in [513, 1024, 1024 + 10] {
        std::fs::write(&tar, &first[..length]).unwrap();
        assert!(InputFiles::open(std::slice::from_ref(&tar), FileKind::PICTURES).is_err(), "{length}");
    }
}

#[test]
fn archives_of_several_volumes_are_refused() {
    let work = Fixture::new();
    std::fs::write(work.tree().join("a/1.png"), vec![7; 60_000]).unwrap();
    let second = work.folder.path().join("second.tar");
    let second_volume = format!("--file={}", second.display());
    let tar = work.tar(&["--multi-volume", "--tape-length=40", &second_volume, "."]);
    // The first volume ends inside a member.
    assert!(message(&tar).contains("ends inside"), "{}", message(&tar));
    let found = message(&second);
    assert!(found.contains("continues a file of another volume"), "{found}");
}
