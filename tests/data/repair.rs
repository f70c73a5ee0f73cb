//! Tests of `arinar-data verify --repair`, which replaces damaged shards by copies that verify, and by nothing else.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use arinar_data::format::Manifest;
use arinar_store::Store;
use arinar_tests::support::data::{
    DATASET_ID, arinar_data, exit_status, files, flip_bit, succeeded, text, write_synthetic_dataset,
};

/// A dataset, a second copy of it and a cache folder, all undamaged.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cached = format!("cache/{DATASET_ID}");
        for name in ["dataset", "copy", &cached] {
            write_synthetic_dataset(&folder.path().join(name), &[5, 3, 4, 6]);
        }
        std::fs::remove_file(folder.path().join(cached).join("manifest.json")).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Verifies the dataset deeply; returns exit code, standard output and standard error.
    fn verify(&self, more: &[&str]) -> (i32, String, String) {
        let (dataset, cache) = (self.path("dataset"), self.path("cache"));
        let repair = more.contains(&"--repair");
        let cache: &[&str] = if repair { &["--cache-dir", text(&cache)] } else { &[] };
        exit_status(&arinar_data(&[&["verify", "--deep", text(&dataset)], more, cache].concat()))
    }
}

fn shard(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("shard-0000{index}.safetensors"))
}

#[test]
fn shards_are_restored_from_the_cache_and_from_a_second_copy() {
    let work = Fixture::new();
    let dataset = work.path("dataset");
    let whole = files(&dataset);
    flip_bit(&shard(&dataset, 0), 900);
    std::fs::remove_file(shard(&dataset, 1)).unwrap();
    std::fs::write(shard(&dataset, 3), b"cut off").unwrap();
    // The cached copy of shard 3 is damaged, too.
    flip_bit(&shard(&work.path(&format!("cache/{DATASET_ID}")), 3), 1000);
    let (code, _, stderr) = work.verify(&[]);
    assert!(code == 1 && stderr.contains("3 of 4 shards") && stderr.contains("--repair"), "{stderr}");
    let (code, stdout, stderr) = work.verify(&["--repair"]);
    assert!(code == 1 && stderr.contains("1 of 4 shards are damaged"), "{stderr}");
    assert!(stderr.contains("shard-00003") && stderr.contains("no copy is intact"), "{stderr}");
    assert_eq!(stdout.matches("was damaged and has been replaced").count(), 2, "{stdout}");
    // The shard that could not be repaired is unchanged.
    assert_eq!(std::fs::read(shard(&dataset, 3)).unwrap(), b"cut off");
    let copy = work.path("copy");
    let (code, stdout, stderr) = work.verify(&["--repair", "--from", text(&copy)]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("shard-00003.safetensors was damaged and has been replaced by"), "{stdout}");
    assert!(stdout.contains("4 shards with 18 records are sound"), "{stdout}");
    assert!(files(&dataset) == whole);
    assert_eq!(succeeded(&arinar_data(&["verify", "--deep", text(&dataset)])).lines().count(), 1);
}

#[test]
fn copies_that_do_not_verify_are_not_written() {
    let work = Fixture::new();
    let (dataset, copy) = (work.path("dataset"), work.path("copy"));
    let damaged: Vec<Vec<u8>> = [0, 1]
        .map(|index| {
            flip_bit(&shard(&dataset, index), 800);
            std::fs::read(shard(&dataset, index)).unwrap()
        })
        .to_vec();
    // The copies of shard 0 are damaged at another offset; those of shard 1 are valid, but of another shard.
    for folder in [work.path(&format!("cache/{DATASET_ID}")), copy.clone()] {
        flip_bit(&shard(&folder, 0), 1100);
        std::fs::copy(shard(&folder, 2), shard(&folder, 1)).unwrap();
    }
    let (code, _, stderr) = work.verify(&["--repair", "--from", text(&copy)]);
    assert!(code == 1 && stderr.contains("2 of 4 shards"), "{stderr}");
    for (index, bytes) in damaged.iter().enumerate() {
        assert!(std::fs::read(shard(&dataset, index)).unwrap() == *bytes);
    }
}

#[test]
fn a_copy_of_another_dataset_is_rejected() {
    let work = Fixture::new();
    let copy = work.path("copy");
    let store = Store::open(text(&copy)).unwrap();
    let other = Manifest { dataset_id: "0000000000000000".to_owned(), ..Manifest::read(&store).unwrap() };
    other.write(&store).unwrap();
    let (code, _, stderr) = work.verify(&["--repair", "--from", text(&copy)]);
    assert!(
        code == 78 && stderr.contains(&format!("is dataset 0000000000000000, not a copy of dataset {DATASET_ID}")),
        "{code} {stderr}"
    );
    let (code, _, stderr) = work.verify(&["--from", text(&copy)]);
    assert!(code == 78 && stderr.contains("--repair"), "{code} {stderr}");
}

#[test]
fn a_shard_with_an_invalid_label_is_not_reported_as_repaired() {
    let work = Fixture::new();
    for name in ["dataset", "copy"] {
        let store = Store::open(text(&work.path(name))).unwrap();
        let manifest = Manifest::read(&store).unwrap();
        let fewer = Manifest { classes: vec!["a".to_owned()], class_counts: vec![0], ..manifest };
        fewer.write(&store).unwrap();
    }
    let copy = work.path("copy");
    let (code, _, stderr) = work.verify(&["--repair", "--from", text(&copy)]);
    assert!(code == 1 && stderr.contains("label 1, but there are 1 classes"), "{code} {stderr}");
}
