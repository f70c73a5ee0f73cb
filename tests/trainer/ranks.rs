//! Any number of ranks trains the same way: same samples, same losses, agreeing collectives.
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
use arinar_tests::support::trainer::{Ended, Lab, launch};
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};

const STEPS: u64 = 20;
/// Many times as long as a few collective calls take.
const PATIENCE: Duration = Duration::from_secs(180);
/// mpirun kills its ranks a second after SIGTERM, and ends.
const MPIRUN_ENDS: Duration = Duration::from_secs(10);

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

#[test]
fn a_rank_by_itself_conforms() {
    conformance(&Single, tch::Device::Cpu).unwrap();
}

/// Not a test: what a rank of the next one does.
#[test]
#[ignore = "run by other tests in a process of its own"]
fn one_rank_of_several() {
    // Whatever it waits for, it does not outlive mpirun.
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let ranks = MpiCollective::start().unwrap();
    if let Err(told) = conformance(&ranks, tch::Device::Cpu) {
        eprintln!("{told}");
        // Unwinding would wait for the others, and they for this rank.
        arinar_trainer::process_exit::exit_now(exit_code::FAILED);
    }
}

/// Runs mpirun to its end. Ranks that wait for each other for ever are killed, and what they said is told.
#[track_caller]
fn ended(mut command: Command) -> Ended {
    let child = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let group = Pid::from_child(&child);
    let (end, watch) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        // Until `end` is dropped.
        let is_late = |time| watch.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout);
        let late = is_late(PATIENCE);
        if late {
            let _ = kill_process_group(group, Signal::TERM);
            if is_late(MPIRUN_ENDS) {
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        late
    });
    let ended = Ended::of(child.wait_with_output().unwrap());
    drop(end);
    assert!(!watchdog.join().unwrap(), "not within {PATIENCE:?}:\n{}\n{}", ended.stdout, ended.stderr);
    ended
}

#[test]
fn mpi_conforms() {
    for ranks in [1, 2, 3] {
        let mut command = launch(ranks);
        command.arg(std::env::current_exe().unwrap());
        command.args(["--exact", "ranks::one_rank_of_several", "--ignored", "--nocapture"]);
        let ended = ended(command).succeeded();
        assert_eq!(ended.stdout.matches("1 passed").count(), ranks, "{}", ended.stdout);
    }
}
