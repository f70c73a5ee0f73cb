//! Property test: a random tree gives the same files and classes as a folder and as a tar file, or is refused in both.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use arinar_data::sources::{FileKind, InputFiles, SourceError};
use arinar_tests::support::data::gnu_tar;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

const FOLDERS: [&[u8]; 8] = [b"a", b"a/x", b"a/x/y", b"b", b"b/.h", b".g", b"c\xe9", b"d e"];
const NAMES: [&[u8]; 8] = [b"0.png", b"1.JPG", b"2.txt", b".3.png", b"4.avif", b"e\xe9.png", b"noext", b"l.tif"];

const CASES: u32 = 200;

/// A change of the tree. Numbers are indices into the lists above.
#[derive(Clone, Debug)]
enum Change {
    Folder(usize),
    File(usize, usize, u8),
    HardLink {
        from: (usize, usize),
        to: (usize, usize),
    },
    LinkToFile {
        from: (usize, usize),
        to: (usize, usize),
    },
    LinkToFolder {
        from: (usize, usize),
        to: usize,
    },
    /// A link at the top level, in the place of a class.
    Class {
        name: usize,
        to: usize,
    },
    Pipe(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let (folder, name) = (0..FOLDERS.len(), 0..NAMES.len());
    let place = (folder.clone(), name.clone());
    let both = (place.clone(), place.clone());
    prop_oneof![
        1 => folder.clone().prop_map(Change::Folder),
        8 => (folder.clone(), name.clone(), any::<u8>()).prop_map(|(folder, name, byte)| Change::File(folder, name, byte)),
        3 => both.clone().prop_map(|(from, to)| Change::HardLink { from, to }),
        3 => both.prop_map(|(from, to)| Change::LinkToFile { from, to }),
        2 => (place, folder.clone()).prop_map(|(from, to)| Change::LinkToFolder { from, to }),
        1 => (0..3usize, folder.clone()).prop_map(|(name, to)| Change::Class { name, to }),
        1 => (folder, name).prop_map(|(folder, name)| Change::Pipe(folder, name)),
    ]
}

fn folder(index: usize) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(FOLDERS[index]))
}

fn place((index, name): (usize, usize)) -> PathBuf {
    folder(index).join(OsStr::from_bytes(NAMES[name]))
}

/// Makes a change. A change that is not possible, such as a file in the place of another, is left out.
fn make(root: &Path, change: &Change) {
    let parent = |index: usize| std::fs::create_dir_all(root.join(folder(index)));
    let up = |index: usize| "../".repeat(folder(index).components().count());
    let link = |target: String, to: &Path, at: PathBuf| {
        let _ = std::os::unix::fs::symlink(Path::new(&target).join(to), root.join(at));
    };
    match *change {
        Change::Folder(index) => drop(parent(index)),
        Change::File(index, name, byte) => {
            let _ = parent(index);
            let path = root.join(place((index, name)));
            if !path.exists() && !path.is_symlink() {
                let _ = std::fs::write(path, [byte; 3]);
            }
        }
        Change::HardLink { from, to } => {
            let _ = parent(from.0);
            let _ = std::fs::hard_link(root.join(place(to)), root.join(place(from)));
        }
        Change::LinkToFile { from, to } => {
            let _ = parent(from.0);
            link(up(from.0), &place(to), place(from));
        }
        Change::LinkToFolder { from, to } => {
            let _ = parent(from.0);
            link(up(from.0), &folder(to), place(from));
        }
        Change::Class { name, to } => link(String::new(), &folder(to), PathBuf::from(["k", "l.m", ".n"][name])),
        Change::Pipe(index, name) => {
            let _ = parent(index);
            let path = root.join(place((index, name)));
            let _ = rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0);
        }
    }
}

/// Everything that a dataset takes from its input. Reasons of unreadable files differ in wording.
type Summary = (Vec<String>, Vec<(String, u32, Option<Vec<u8>>)>);

fn summary(files: &InputFiles) -> Summary {
    let file = |index| (files.name(index).into_owned(), files.label(index), files.read(index).ok());
    (files.classes().to_vec(), (0..files.len()).map(file).collect())
}

fn open(path: &Path) -> Result<Summary, SourceError> {
    InputFiles::open(&[path.to_path_buf()], FileKind::PICTURES).map(|files| summary(&files))
}

#[test]
fn a_random_tree_is_the_same_as_a_folder_and_as_a_tar_file() {
    let usable = Cell::new(0u32);
    // The same trees in every run. HOSTILE_SEED selects others.
    let seed = std::env::var("HOSTILE_SEED").map_or(1, |seed| seed.parse().unwrap());
    let rng_seed = RngSeed::Fixed(seed);
    let mut runner = TestRunner::new(Config { cases: CASES, rng_seed, failure_persistence: None, ..Config::default() });
    runner
        .run(&prop::collection::vec(change(), 1..24), |changes| {
            let work = tempfile::tempdir().unwrap();
            let root = work.path().join("tree");
            std::fs::create_dir(&root).unwrap();
            changes.iter().for_each(|change| make(&root, change));
            let tar = work.path().join("tree.tar");
            gnu_tar(&tar, &root, &["--sort=name", "."]);
            match (open(&root), open(&tar)) {
                (Ok(as_folder), Ok(as_tar)) => {
                    usable.set(usable.get() + 1);
                    prop_assert_eq!(as_folder, as_tar);
                }
                (Err(as_folder), Err(as_tar)) => {
                    let kinds = [&as_folder, &as_tar].map(std::mem::discriminant);
                    prop_assert!(kinds[0] == kinds[1], "{} or {}", as_folder, as_tar);
                }
                (as_folder, as_tar) => prop_assert!(false, "folder {as_folder:?}, tar {as_tar:?}"),
            }
            Ok(())
        })
        .unwrap();
    assert!(usable.get() >= CASES / 10, "only {} of {CASES} trees are usable", usable.get());
}
