//! Tests of datasets with more shards than a process may open files.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use arinar_tests::support::trainer::{Lab, ProcessOutput, launch, trainer, write_shards};
use arinar_tests::support::trial::started_by;

/// Number of shards, each with one sample.
const SHARDS: u64 = 400;

/// Runs the trainer with limits on open files.
fn limited(ranks: usize, lab: &Lab, soft: u64, hard: u64, more: &[&str]) -> ProcessOutput {
    let mut command = Command::new(trainer());
    command.arg("--config").arg(lab.path("tiny.yaml")).args(more);
    let mut shell = launch(ranks);
    shell.args(["sh", "-c", "ulimit -Sn $1 && ulimit -Hn $2 && shift 2 && exec \"$@\"", "sh"]);
    shell.args([soft.to_string(), hard.to_string()]);
    ProcessOutput::of(started_by(shell, &command).output().unwrap())
}

#[test]
fn a_dataset_may_have_more_shards_than_files_may_be_open() {
    let lab = Lab::new();
    write_shards(&lab.path("dataset"), SHARDS, SHARDS, None);
    let cache = format!("data.cache_dir={}", lab.path("cache").display());
    // Every shard is read in the first epoch, which has 50 steps, and some again.
    let epoch = ["--set", "train.max_steps=60", "--set", "checkpoint.every=1000 steps"];
    for (ranks, soft, hard, cached) in [(0, 150, 600, false), (2, 150, 200, false), (0, 200, 200, true)] {
        let more = if cached { vec!["--set", &cache] } else { Vec::new() };
        limited(ranks, &lab, soft, hard, &[&epoch[..], &more, &["--check"]].concat()).succeeded();
        limited(ranks, &lab, soft, hard, &[&epoch[..], &more].concat()).succeeded();
        std::fs::remove_dir_all(lab.path("run")).unwrap();
    }
}

#[test]
fn a_limit_that_is_too_low_is_reported_before_the_run() {
    let lab = Lab::new();
    let needed = "the limit of open files is 100, 128 are needed; raise it (ulimit -Hn 128)";
    let checked = limited(0, &lab, 50, 100, &["--check"]);
    assert!(checked.code == Some(78) && checked.stdout.contains(needed), "{}", checked.stdout);
    let output = limited(0, &lab, 50, 100, &[]);
    assert!(output.code == Some(78) && output.error().contains(needed), "{}", output.stderr);
    assert!(!lab.path("run").exists());
}
