//! Tests that an encode run notices pictures whose contents have changed since an earlier run.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use arinar_data::format::{Manifest, ShardFacts, ShardWriter, xxh3_hex};
use arinar_store::Store;
use arinar_tests::support::data::{arinar_data, exit_status, files, succeeded, text};
use image::{Rgb, RgbImage};

use super::encode::Fixture;

fn encode(work: &Fixture, out: &str, more: &[&str]) -> (i32, String, String) {
    exit_status(&work.encode(out, more))
}

fn encoded(work: &Fixture, out: &str, more: &[&str]) -> String {
    succeeded(&work.encode(out, more))
}

/// Paints a picture blue. Size and modification time of the file stay as they were.
fn repaint(path: &Path) {
    let before = std::fs::metadata(path).unwrap();
    let blue = |level| RgbImage::from_pixel(8, 8, Rgb([0, 0, level]));
    blue(255).save(path).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
}

#[test]
fn a_complete_dataset_is_not_changed_without_a_request() {
    let work = Fixture::new(70);
    encoded(&work, "out", &[]);
    let (before, id) = (files(&work.path("out")), work.manifest("out").dataset_id);
    repaint(&work.path("pictures/apes/0001.png"));
    let (code, _, stderr) = encode(&work, "out", &[]);
    assert_eq!(code, 78, "{stderr}");
    for part in ["other pictures", "apes/0001.png has changed since", "--overwrite", text(&work.path("out"))] {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert!(files(&work.path("out")) == before);
    encoded(&work, "out", &["--overwrite"]);
    encoded(&work, "fresh", &[]);
    assert!(files(&work.path("out")) == files(&work.path("fresh")));
    assert_ne!(work.manifest("out").dataset_id, id);
}

#[test]
fn pictures_that_are_copied_or_touched_are_unchanged() {
    let work = Fixture::new(40);
    encoded(&work, "out", &[]);
    let id = work.manifest("out").dataset_id;
    let (picture, copy) = (work.path("pictures/apes/0001.png"), work.path("copy.png"));
    std::fs::copy(&picture, &copy).unwrap();
    std::fs::rename(&copy, &picture).unwrap();
    assert!(encoded(&work, "out", &[]).contains("40 were kept from an earlier run"));
    assert_eq!(work.manifest("out").dataset_id, id);
}

#[test]
fn an_unfinished_dataset_takes_the_new_contents() {
    let work = Fixture::new(70);
    encoded(&work, "whole", &[]);
    // One unusable picture ends the run without a manifest; the shards without it are kept.
    let broken = work.path("pictures/birds/0003.png");
    let good = std::fs::read(&broken).unwrap();
    std::fs::write(&broken, "no picture").unwrap();
    assert_eq!(encode(&work, "out", &[]).0, 1);
    std::fs::write(&broken, good).unwrap();
    (0..70)
        .filter(|index| index % 3 != 0)
        .for_each(|index| repaint(&work.path(&format!("pictures/apes/{index:04}.png"))));
    let (code, _, stderr) = encode(&work, "out", &[]);
    assert!(code == 0 && stderr.contains("has changed since; making it again"), "{stderr}");
    encoded(&work, "fresh", &[]);
    assert!(files(&work.path("out")) == files(&work.path("fresh")));
    assert!(files(&work.path("out")) != files(&work.path("whole")));
}

#[test]
fn a_skipped_picture_that_was_repaired_is_taken_in() {
    let work = Fixture::new(40);
    let broken = work.path("pictures/birds/0003.png");
    let good = std::fs::read(&broken).unwrap();
    std::fs::write(&broken, "no picture").unwrap();
    encoded(&work, "out", &["--skip-bad"]);
    assert_eq!(work.manifest("out").num_samples, 39);
    assert!(encoded(&work, "out", &["--skip-bad"]).contains("40 were kept"));
    std::fs::write(&broken, good).unwrap();
    encoded(&work, "out", &["--skip-bad"]);
    assert_eq!(work.manifest("out").num_samples, 40);
}

/// Rewrites the only shard of a dataset with zeros for moments, keeping labels and, if `contents` is set, the recorded
/// hashes of the pictures.
fn rewrite_shard(out: &Path, contents: bool) {
    let store = Store::open(text(out)).unwrap();
    let manifest = Manifest::read(&store).unwrap();
    let name = manifest.shards[0].name.clone();
    let file = store.get(&name).unwrap();
    let shape = manifest.moments_shape();
    let layout = arinar_data::format::ShardLayout::parse(&file, shape).unwrap();
    let zeros = vec![0; 2 * shape.iter().product::<usize>()];
    let mut writer = ShardWriter::new(shape);
    for record in 0..layout.count() {
        let (label, source_id) = layout.facts(&file, record);
        match layout.content(&file, record).filter(|_| contents) {
            Some(content) => writer.push_with_content(label, source_id, content, &zeros, &zeros),
            None => writer.push(label, source_id, &zeros, &zeros),
        }
    }
    let file = writer.finish(layout.encode_id()).unwrap();
    let facts = ShardFacts { bytes: file.len() as u64, xxh3_128: xxh3_hex(&file), ..manifest.shards[0].clone() };
    store.put(&name, file).unwrap();
    Manifest { shards: vec![facts], ..manifest }.write(&store).unwrap();
}

#[test]
fn overwrite_makes_every_shard_anew() {
    let work = Fixture::new(20);
    encoded(&work, "out", &[]);
    let whole = files(&work.path("out"));
    rewrite_shard(&work.path("out"), true);
    assert!(encoded(&work, "out", &[]).contains("20 were kept"), "the shard matches its pictures");
    assert!(!encoded(&work, "out", &["--overwrite"]).contains("kept"));
    assert!(files(&work.path("out")) == whole);
}

#[test]
fn shards_of_earlier_versions_are_not_taken_for_the_present_pictures() {
    let work = Fixture::new(20);
    encoded(&work, "out", &[]);
    let whole = files(&work.path("out"));
    rewrite_shard(&work.path("out"), false);
    succeeded(&arinar_data(&["verify", "--deep", text(&work.path("out"))]));
    let (code, _, stderr) = encode(&work, "out", &[]);
    assert!(code == 78 && stderr.contains("did not record the contents of pictures"), "{code} {stderr}");
    std::fs::remove_file(work.path("out/manifest.json")).unwrap();
    encoded(&work, "out", &[]);
    assert!(files(&work.path("out")) == whole);
}

#[test]
fn an_interrupted_overwrite_leaves_no_mixture() {
    let work = Fixture::new(70);
    encoded(&work, "out", &[]);
    repaint(&work.path("pictures/apes/0001.png"));
    let broken = work.path("pictures/birds/0003.png");
    let good = std::fs::read(&broken).unwrap();
    std::fs::write(&broken, "no picture").unwrap();
    assert_eq!(encode(&work, "out", &["--overwrite"]).0, 1);
    assert!(!work.path("out/manifest.json").exists());
    std::fs::write(&broken, good).unwrap();
    // The same command without --overwrite goes on.
    assert!(encoded(&work, "out", &[]).contains("were kept from an earlier run"));
    encoded(&work, "fresh", &[]);
    assert!(files(&work.path("out")) == files(&work.path("fresh")));
}
