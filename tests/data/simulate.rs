//! Tests that run `arinar-data simulate` and `bench` as a user does.

#![allow(clippy::unwrap_used)]

use arinar_data::commands::simulate::quality;
use arinar_data::format::Manifest;
use arinar_data::read::Shuffle;
use arinar_store::Store;
use arinar_tests::support::data::{arinar_data, exit_status, flip_bit, succeeded, text, write_synthetic_dataset};
use serde_json::Value;

/// Writes only the manifest of a dataset of 40 shards of 25 samples, 1000 samples in 10 classes.
fn write_manifest(folder: &std::path::Path) -> Manifest {
    let manifest = write_synthetic_dataset(folder, &[25; 40]);
    for shard in &manifest.shards {
        std::fs::remove_file(folder.join(&shard.name)).unwrap();
    }
    let classes = (0..10).map(|class| class.to_string()).collect();
    let manifest = Manifest { classes, class_counts: vec![100; 10], ..manifest };
    manifest.write(&Store::open(text(folder)).unwrap()).unwrap();
    manifest
}

fn simulate(folder: &std::path::Path, more: &[&str]) -> Vec<Value> {
    let stdout = succeeded(&arinar_data(&[&["simulate", "--data", text(folder), "--json"], more].concat()));
    serde_json::from_str(&stdout).unwrap()
}

#[test]
fn egress_and_cache_size_follow_from_window_and_limit() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write_manifest(folder.path());
    let (bytes, shard) = (manifest.shards.iter().map(|shard| shard.bytes).sum::<u64>(), manifest.shards[0].bytes);
    let limit = (8 * shard + 100).to_string();
    let job = ["--nodes", "4", "--ranks-per-node", "2", "--global-batch", "40", "--cache-limit", &limit];
    let found = simulate(folder.path(), &[&job[..], &["--window", "4,10"]].concat());
    assert_eq!(found.iter().map(|finding| finding["window"].as_u64().unwrap()).collect::<Vec<_>>(), [4, 10, 0]);
    let fits: Vec<bool> = found.iter().map(|finding| finding["fits"].as_bool().unwrap()).collect();
    assert_eq!(fits, [true, false, false]);
    assert_eq!(found[0]["egress_first_epoch"], bytes);
    assert!(found[0]["egress_later_epochs"].as_u64().unwrap() <= bytes);
    assert!(found[1]["egress_first_epoch"].is_null());
    assert_eq!(found[2]["cache_needed"], bytes);
    // Without a limit every shard is fetched once.
    let found = simulate(folder.path(), &["--window", "4"]);
    assert_eq!((&found[0]["egress_first_epoch"], &found[0]["egress_later_epochs"]), (&bytes.into(), &0.into()));
    let stdout = succeeded(&arinar_data(&["simulate", "--data", text(folder.path()), "--window", "4"]));
    for part in ["1000 samples in 40 shards", "window of 4 shards", "full shuffle", "1.00 x the dataset", "classes"] {
        assert!(stdout.contains(part), "{part:?} is not in {stdout}");
    }
}

#[test]
fn shuffle_quality_matches_theory() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write_manifest(folder.path());
    let quality_of = |window| quality(&manifest, &Shuffle::new([25; 40], 1, window), 50, 1);
    let (one, four, full) = (quality_of(1), quality_of(4), quality_of(0));
    // With windows of one shard of 25 samples, a batch of 50 is two whole shards.
    assert_eq!((one.shards_per_batch, one.largest_share), (2.0, 0.5));
    assert_eq!(full.pairs_from_one_window, 1.0);
    // 50 of 1000 samples without replacement hit 40 * (1 - C(975, 50) / C(1000, 50)) = 29.1 of 40 shards.
    assert!((full.shards_per_batch - 29.1).abs() < 1.0, "{full:?}");
    assert!(one.largest_share > four.largest_share && four.largest_share > full.largest_share);
    // Classes are spread over all shards, so the window does not change the number of classes in a batch.
    for quality in [&one, &four, &full] {
        assert!((quality.classes_per_batch.unwrap() - 9.95).abs() < 0.15, "{quality:?}");
    }
    // Probability that two samples of a batch were in the same one of ten windows before: 1 if they are of the same
    // shard, otherwise 3/39.
    assert!(four.pairs_from_one_window < 0.45 && four.pairs_from_one_window > 0.2, "{four:?}");
}

#[test]
fn bench_separates_cold_and_warm_reads_and_detects_damage() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write_synthetic_dataset(folder.path(), &[20, 30]);
    let stdout = succeeded(&arinar_data(&["bench", "--data", text(folder.path()), "--seconds", "1"]));
    for part in ["cold: 2 of 2 shards", "warm: ", "records/s"] {
        assert!(stdout.contains(part), "{part:?} is not in {stdout}");
    }
    assert_eq!(stdout.lines().count(), 2, "{stdout}");
    flip_bit(&folder.path().join(&manifest.shards[1].name), 1200);
    let (code, _, stderr) = exit_status(&arinar_data(&["bench", "--data", text(folder.path())]));
    assert!(code == 1 && stderr.contains("shard-00001.safetensors is damaged"), "{stderr}");
}

#[test]
fn wrong_command_lines_exit_78() {
    let folder = tempfile::tempdir().unwrap();
    write_manifest(folder.path());
    let wrong = |arguments: &[&str], part: &str| {
        let (code, _, stderr) = exit_status(&arinar_data(arguments));
        assert!(code == 78 && stderr.contains(part), "{code} {stderr}");
    };
    let data = text(folder.path());
    wrong(&["simulate", "--data", data, "--nodes", "3", "--global-batch", "40"], "39 or 42");
    wrong(&["simulate", "--data", data, "--nodes", "0"], "at least 1");
    wrong(&["simulate", "--data", "/nowhere"], "no manifest.json");
    wrong(&["simulate", "--data", data, "--cache-limit", "many"], "--cache-limit");
    wrong(&["bench", "--data", data, "--seconds", "0"], "--seconds");
}
