//! Any number of ranks trains the same way: same samples, same losses, agreeing collectives.
#![allow(clippy::unwrap_used)]

mod trainer_support;

use std::{collections::BTreeMap, process::Command};

use arinar_trainer::collective::{self, MpiCollective};
use trainer_support::{Ended, Lab, launch};

const STEPS: u64 = 20;

/// Losses by step and the samples of each step, sorted, of a run on that many ranks.
fn train(lab: &Lab, ranks: usize) -> (BTreeMap<u64, f32>, Vec<String>) {
    let name = |what: &str| lab.path(&format!("{what}{ranks}")).display().to_string();
    let (run, logs) = (format!("run.dir={}", name("run")), format!("run.log_dir={}", name("logs")));
    let samples = name("samples");
    let overrides = [&run, &logs, "model.outer.dropout=0"];
    let mut command: Command = lab.command(ranks, &overrides);
    Ended::of(command.env("ARINAR_SAMPLE_LOG", &samples).output().unwrap()).succeeded();
    let mut lines: Vec<String> = std::fs::read_to_string(&samples).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    (lab.curve(&format!("logs{ranks}"), "train_loss"), lines)
}

#[test]
fn one_two_and_four_ranks_train_alike() {
    let lab = Lab::new();
    let (alone, samples) = train(&lab, 0);
    assert_eq!(alone.keys().copied().collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>());
    assert_eq!(samples.len() as u64, 8 * STEPS);
    assert!(alone[&STEPS] < alone[&1] - 0.5, "nothing is learnt: {alone:?}");
    for ranks in [1, 2, 4] {
        let (losses, seen) = train(&lab, ranks);
        assert_eq!(seen, samples, "{ranks} ranks see other samples");
        for (step, loss) in &alone {
            let difference = (losses[step] - loss).abs() / loss.abs().max(1.0);
            assert!(difference < 1e-5, "{ranks} ranks, step {step}: {} and {loss}", losses[step]);
        }
    }
}

#[test]
fn accumulation_changes_nothing() {
    let lab = Lab::new();
    lab.train(0, &["model.outer.dropout=0", "train.max_steps=6"]).succeeded();
    let place = |name: &str| lab.path(name).display().to_string();
    let (run, logs) = (format!("run.dir={}", place("other")), format!("run.log_dir={}", place("others")));
    lab.train(2, &["model.outer.dropout=0", "train.max_steps=6", "batch.micro=2", &run, &logs]).succeeded();
    let (whole, parts) = (lab.curve("logs", "train_loss"), lab.curve("others", "train_loss"));
    for (step, loss) in &whole {
        assert!((parts[step] - loss).abs() < 1e-5 * loss.abs().max(1.0), "step {step}");
    }
}

#[test]
fn four_then_two_then_three_ranks_see_every_sample_once_an_epoch() {
    for window in [0, 1] {
        let lab = Lab::new();
        let log = lab.path("samples");
        let window = format!("data.shuffle_window={window}");
        // 48 samples at 12 a step: an epoch is 4 steps, and both resumes fall inside one.
        for (ranks, until) in [(4, 5), (2, 9), (3, 12)] {
            let mut command = lab.command(ranks, &["batch.global=12", &window, &format!("train.max_steps={until}")]);
            Ended::of(command.env("ARINAR_SAMPLE_LOG", &log).output().unwrap()).succeeded();
        }
        let mut seen: Vec<String> = std::fs::read_to_string(&log)
            .unwrap()
            .lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect();
        seen.sort();
        let mut expected: Vec<String> =
            (0..48).flat_map(|sample| (0..3).map(move |epoch| format!("{sample} {epoch}"))).collect();
        expected.sort();
        assert_eq!(seen, expected, "{window}");
    }
}

const CHILD: &str = "ARINAR_TEST_COLLECTIVE";

/// Run by the test below under mpirun; on its own it has nothing to check.
#[test]
fn conformance_of_one_rank() {
    if std::env::var_os(CHILD).is_none() {
        collective::conformance(&collective::Single, tch::Device::Cpu).unwrap();
        return;
    }
    let ranks = MpiCollective::start().unwrap();
    collective::conformance(&ranks, tch::Device::Cpu).unwrap();
}

#[test]
fn mpi_conforms() {
    for ranks in [1, 2, 3] {
        let mut command = launch(ranks);
        command.arg(std::env::current_exe().unwrap());
        command.args(["--exact", "conformance_of_one_rank"]).env(CHILD, "1");
        Ended::of(command.output().unwrap()).succeeded();
    }
}
