//! Tests that read a dataset from S3 as the ranks of a node do, despite faults and within the documented limits of
//! egress and memory.

#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arinar_data::Reporter;
use arinar_data::format::Manifest;
use arinar_data::read::cache::{CacheConfig, needed_bytes};
use arinar_data::read::{Batch, BatchSource, Dataset, Loader, LoaderConfig, Position};
use arinar_tests::s3::{Fault, Faults, S3Server};
use arinar_tests::support::data::{MIRRORED, SCALE, exit_status, label_of, mean_of, write_synthetic_dataset};
use serde::{Deserialize, Serialize};

const BUCKET: &str = "data";
const TASK_VARIABLE: &str = "ARINAR_TEST_READER";

/// Work for the ranks of a node, which proceed in lockstep as in training.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Task {
    url: String,
    cache: std::path::PathBuf,
    limit: Option<u64>,
    window: u64,
    world: usize,
    micro_batch: usize,
    batches: usize,
    /// Whether the dataset was written by `write_synthetic_dataset`, so that the samples can be checked.
    check_samples: bool,
}

/// Result of a [`Task`].
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    /// Epoch and index of each sample.
    samples: Vec<(u64, u64)>,
    /// Largest increase of anonymous memory since reading started, in bytes.
    memory: u64,
    error: Option<String>,
}

/// Not a test: the ranks, in a separate process because a store takes its options from the environment.
#[test]
#[ignore = "run by other tests in a separate process"]
fn reader() {
    let task: Task = serde_json::from_str(&std::env::var(TASK_VARIABLE).unwrap()).unwrap();
    println!("\nreport {}", serde_json::to_string(&read(&task)).unwrap());
}

fn read(task: &Task) -> Report {
    let mut report = Report { samples: Vec::new(), memory: 0, error: None };
    let before = anonymous_memory();
    let outcome = (|| {
        let mut ranks = Vec::new();
        for rank in 0..task.world {
            let cache = CacheConfig { folder: Some(task.cache.clone()), limit: task.limit };
            let dataset = Arc::new(Dataset::open_with_cache(&task.url, cache, Reporter::console())?);
            let config = LoaderConfig {
                seed: 3,
                global_batch: task.world * task.micro_batch,
                rank,
                world_size: task.world,
                micro_batch: task.micro_batch,
                look_ahead: 2,
                window: task.window,
                prefetch: rank == 0,
            };
            ranks.push(Loader::new(dataset, config, Position::default())?);
        }
        for _ in 0..task.batches {
            for rank in &mut ranks {
                let batch = rank.next_batch()?;
                report.samples.extend(batch.samples.iter().map(|key| (key.epoch, key.sample)));
                if task.check_samples {
                    check(&batch);
                }
            }
            report.memory = report.memory.max(anonymous_memory().saturating_sub(before));
        }
        Ok::<(), arinar_data::DataError>(())
    })();
    report.error = outcome.err().map(|error| error.to_string());
    report
}

/// Asserts that each sample has its label, and the mean of its original or mirrored view.
fn check(batch: &Batch) {
    for (index, key) in batch.samples.iter().enumerate() {
        let first = batch.latents.double_value(&[index as i64, 0, 0, 0]) / SCALE;
        let mean = f64::from(mean_of(key.sample as usize));
        assert!([mean, mean + f64::from(MIRRORED)].iter().any(|mean| (mean - first).abs() < 0.01));
        assert_eq!(batch.labels.int64_value(&[index as i64]), label_of(key.sample as usize));
    }
}

fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// A bucket with a dataset, and a cache folder.
struct Lab {
    folder: tempfile::TempDir,
    server: S3Server,
    manifest: Manifest,
}

impl Lab {
    fn new(shards: &[usize]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = S3Server::start(&folder.path().join("store"));
        server.create_bucket(BUCKET);
        let manifest = write_synthetic_dataset(&server.object_path(BUCKET, "set"), shards);
        Self { folder, server, manifest }
    }

    fn task(&self, window: u64, batches: usize) -> Task {
        Task {
            url: format!("s3://{BUCKET}/set"),
            cache: self.folder.path().join("cache"),
            limit: Some(needed_bytes(&self.manifest, window)),
            window,
            world: 1,
            micro_batch: 8,
            batches,
            check_samples: true,
        }
    }

    fn read(&self, task: &Task) -> Report {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "s3::reader", "--ignored", "--nocapture"])
            .env(TASK_VARIABLE, serde_json::to_string(task).unwrap())
            .envs(self.server.environment())
            .env("ARINAR_STORE_PATIENCE", "20")
            .output()
            .unwrap();
        let (_, stdout, stderr) = exit_status(&output);
        assert!(output.status.success(), "{stdout}\n{stderr}");
        serde_json::from_str(stdout.lines().find_map(|line| line.strip_prefix("report ")).unwrap()).unwrap()
    }

    fn egress(&self) -> u64 {
        self.server.counters().below(&format!("{BUCKET}/set/shard-")).sent
    }
}

/// Samples of each shard: 88 in total, so that an epoch is 11 batches of 8.
const SHARDS: [usize; 12] = [9, 12, 3, 8, 8, 8, 10, 2, 7, 8, 8, 5];

#[test]
fn faults_never_cause_a_wrong_sample() {
    let lab = Lab::new(&SHARDS);
    let expected = lab.read(&lab.task(2, 22));
    assert_eq!(expected.error, None);
    assert_eq!(expected.samples.len(), 2 * 88);
    let kinds = [
        Fault::InternalError,
        Fault::SlowDown,
        Fault::Reset,
        Fault::LostAnswer,
        Fault::Stall(Duration::from_secs(1)),
        Fault::Truncate,
        Fault::FlipBit,
    ];
    for kind in kinds {
        std::fs::remove_dir_all(lab.folder.path().join("cache")).unwrap();
        lab.server.reset_counters();
        lab.server.set_faults(Faults {
            of_ten: 2,
            kinds: vec![kind],
            methods: vec!["GET"],
            prefix: format!("{BUCKET}/set/shard-"),
            seed: 1,
            ..Faults::default()
        });
        let report = lab.read(&lab.task(2, 22));
        assert_eq!(report.error, None, "{kind:?}");
        assert_eq!(report.samples, expected.samples, "{kind:?}");
        assert!(lab.server.counters().faults() > 0, "{kind:?} never happened");
    }
}

#[test]
fn a_manifest_corrupted_in_transit_is_requested_again() {
    let lab = Lab::new(&SHARDS);
    let flips = Faults::first(2, Fault::FlipBit, &["GET"]);
    lab.server.set_faults(Faults { prefix: format!("{BUCKET}/set/manifest"), ..flips });
    assert_eq!(lab.read(&lab.task(1, 1)).error, None);
    assert_eq!(lab.server.counters().faults(), 2);
}

#[test]
fn two_ranks_of_a_node_fetch_each_shard_once_per_epoch() {
    // Windows have about 80 samples, more than two ranks in lockstep are ever apart.
    let lab = Lab::new(&[40, 43, 38, 41, 44, 36, 40, 42, 38, 40, 39, 39]);
    let (samples, epochs) = (480, 3);
    let total: u64 = lab.manifest.shards.iter().map(|shard| shard.bytes).sum();
    let report = lab.read(&Task { world: 2, micro_batch: 4, ..lab.task(2, epochs * samples / 8) });
    assert_eq!(report.error, None);
    let mut seen = report.samples;
    seen.sort_unstable();
    let expected: Vec<_> =
        (0..epochs as u64).flat_map(|epoch| (0..samples as u64).map(move |sample| (epoch, sample))).collect();
    assert_eq!(seen, expected);
    // Three epochs, plus the two windows that are prefetched at their end.
    let ahead = needed_bytes(&lab.manifest, 2);
    let most = epochs as u64 * total * 102 / 100 + ahead;
    assert!(lab.egress() <= most, "{} bytes instead of {most}", lab.egress());
    // A cache that holds the whole dataset is filled once.
    lab.server.reset_counters();
    std::fs::remove_dir_all(lab.folder.path().join("cache")).unwrap();
    let whole = Task { limit: None, window: 0, ..lab.task(0, epochs * samples / 8) };
    assert_eq!(lab.read(&whole).error, None);
    assert_eq!(lab.egress(), total);
}

#[test]
fn an_unreachable_store_ends_in_a_one_line_error() {
    let lab = Lab::new(&SHARDS);
    lab.server.set_faults(Faults { down: true, ..Faults::default() });
    let start = Instant::now();
    let error = lab.read(&lab.task(2, 22)).error.unwrap();
    assert!(error.contains("s3://data/set") && !error.contains('\n'), "{error}");
    assert!(start.elapsed() < Duration::from_secs(90));
}

#[test]
fn memory_stays_within_four_batches_and_64_mib() {
    // The dataset has 192 MiB in shards of 32 MiB, more than the loader may hold.
    let lab = Lab::new(&[]);
    let folder = lab.server.object_path(BUCKET, "large");
    let manifest = arinar_tests::support::data::write_large_dataset(&folder, 6, 512);
    let url = format!("s3://{BUCKET}/large");
    let task = Task { url, limit: Some(needed_bytes(&manifest, 1)), micro_batch: 32, batches: 96, ..lab.task(1, 0) };
    let report = lab.read(&Task { check_samples: false, ..task.clone() });
    assert_eq!(report.error, None);
    assert_eq!(report.samples.len(), 32 * 96);
    // Two prefetched batches, the current one, and one that is being converted to tensors. Latents in f32 are as large
    // as both moments in f16.
    let batch = 32 * (32 << 10);
    assert!(report.memory < 4 * batch + (64 << 20), "{} MiB", report.memory >> 20);
    println!("loader: {} MiB above the start", report.memory >> 20);
}
