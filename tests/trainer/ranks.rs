//! Tests that any number of ranks trains on the same samples with the same losses, and that the collectives are
//! correct.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use arinar_collective::{MpiCollective, Single, conformance};
use arinar_protocol::exit_code;
use arinar_tests::support::trainer::{Lab, ProcessOutput, launch};
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};

const STEPS: u64 = 20;
/// Timeout of the conformance suite, many times longer than a few collective calls take.
const TIMEOUT: Duration = Duration::from_secs(180);
/// Time for mpirun to exit after SIGTERM. It kills its ranks after a second.
const MPIRUN_TIMEOUT: Duration = Duration::from_secs(10);

/// Trains on a number of ranks and returns the loss by step and the sorted lines of the sample log.
fn train(lab: &Lab, ranks: usize) -> (BTreeMap<u64, f32>, Vec<String>) {
    let name = |what: &str| lab.path(&format!("{what}{ranks}")).display().to_string();
    let (run, logs) = (format!("run.dir={}", name("run")), format!("run.log_dir={}", name("logs")));
    let samples = name("samples");
    let overrides = [&run, &logs, "model.outer.dropout=0"];
    let mut command: Command = lab.command(ranks, &overrides);
    ProcessOutput::of(command.env("ARINAR_SAMPLE_LOG", &samples).output().unwrap()).succeeded();
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
    assert!(alone[&STEPS] < alone[&1] - 0.5, "the loss does not fall: {alone:?}");
    for ranks in [1, 2, 4] {
        let (losses, seen) = train(&lab, ranks);
        assert_eq!(seen, samples, "{ranks} ranks see different samples");
        for (step, loss) in &alone {
            let difference = (losses[step] - loss).abs() / loss.abs().max(1.0);
            assert!(difference < 1e-5, "{ranks} ranks, step {step}: {} and {loss}", losses[step]);
        }
    }
}

#[test]
fn accumulation_does_not_change_the_losses() {
    let lab = Lab::new();
    lab.train(0, &["model.outer.dropout=0", "train.max_steps=6"]).succeeded();
    let path = |name: &str| lab.path(name).display().to_string();
    let (run, logs) = (format!("run.dir={}", path("other")), format!("run.log_dir={}", path("others")));
    lab.train(2, &["model.outer.dropout=0", "train.max_steps=6", "batch.micro=2", &run, &logs]).succeeded();
    let (whole, parts) = (lab.curve("logs", "train_loss"), lab.curve("others", "train_loss"));
    for (step, loss) in &whole {
        assert!((parts[step] - loss).abs() < 1e-5 * loss.abs().max(1.0), "step {step}");
    }
}

#[test]
fn four_then_two_then_three_ranks_see_every_sample_once_per_epoch() {
    for window in [0, 1] {
        let lab = Lab::new();
        let log = lab.path("samples");
        let window = format!("data.shuffle_window={window}");
        // 48 samples at 12 per step: an epoch is 4 steps, and both resumes are in the middle of one.
        for (ranks, until) in [(4, 5), (2, 9), (3, 12)] {
            let mut command = lab.command(ranks, &["batch.global=12", &window, &format!("train.max_steps={until}")]);
            ProcessOutput::of(command.env("ARINAR_SAMPLE_LOG", &log).output().unwrap()).succeeded();
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

#[test]
fn a_single_rank_passes_the_conformance_suite() {
    conformance(&Single, tch::Device::Cpu).unwrap();
}

/// Not a test: the next one runs it as a rank.
#[test]
#[ignore = "run by other tests in a separate process"]
fn one_rank_of_several() {
    // A rank that waits must not outlive mpirun.
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let ranks = MpiCollective::start().unwrap();
    if let Err(error) = conformance(&ranks, tch::Device::Cpu) {
        eprintln!("{error}");
        // Unwinding would wait for the other ranks, which wait for this one.
        arinar_trainer::process_exit::exit_now(exit_code::FAILED);
    }
}

/// Runs mpirun to completion. If its ranks deadlock, kills them and panics with their output.
#[track_caller]
fn run_with_timeout(mut command: Command) -> ProcessOutput {
    let child = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let group = Pid::from_child(&child);
    let (finished, watch) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        // Waits until `finished` is dropped.
        let is_late = |time| watch.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout);
        let late = is_late(TIMEOUT);
        if late {
            let _ = kill_process_group(group, Signal::TERM);
            if is_late(MPIRUN_TIMEOUT) {
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        late
    });
    let output = ProcessOutput::of(child.wait_with_output().unwrap());
    drop(finished);
    assert!(!watchdog.join().unwrap(), "mpirun did not exit within {TIMEOUT:?}:\n{}\n{}", output.stdout, output.stderr);
    output
}

#[test]
fn mpi_passes_the_conformance_suite() {
    for ranks in [1, 2, 3] {
        let mut command = launch(ranks);
        command.arg(std::env::current_exe().unwrap());
        command.args(["--exact", "ranks::one_rank_of_several", "--ignored", "--nocapture"]);
        let output = run_with_timeout(command).succeeded();
        assert_eq!(output.stdout.matches("1 passed").count(), ranks, "{}", output.stdout);
    }
}
