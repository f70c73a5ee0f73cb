//! Tests of the launcher with the real trainer: an interrupted run ends bit-identical to an undisturbed one.
#![allow(clippy::unwrap_used)]

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use arinar_tests::programs::program;
use arinar_tests::support::launcher::{LauncherOutput, Running, signal, wait_until};
use arinar_tests::support::trainer::Lab;
use rustix::process::Signal;

/// Overrides for a run that is long enough to be interrupted several times.
const LENGTH: [&str; 2] = ["train.max_steps=600", "checkpoint.every=20 steps"];

/// The value of `--silence-limit`.
const SILENCE: Duration = Duration::from_secs(6);

fn launch(lab: &Lab) -> Command {
    let mut command = Command::new(program("arinar-launcher"));
    command.arg("--config").arg(lab.path("tiny.yaml")).args(["--nproc", "2", "--silence-limit", "6s"]);
    for value in LENGTH {
        command.args(["--set", value]);
    }
    command
}

fn start(lab: &Lab) -> Running {
    let child = launch(lab).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    Running { child: Some(child), log: lab.path("logs/ranks/launcher.log") }
}

/// Waits for a checkpoint that is not in `known`.
fn next_checkpoint(lab: &Lab, known: &[String]) {
    wait_until("a checkpoint", || lab.checkpoints("run").iter().any(|name| !known.contains(name)).then_some(()));
}

/// Trains undisturbed and asserts that the run has the same weights and losses.
fn assert_like_undisturbed(lab: &Lab) {
    let path = |name: &str| lab.path(name).display().to_string();
    let (run, logs) = (format!("run.dir={}", path("calm")), format!("run.log_dir={}", path("calm-logs")));
    lab.train(2, &[LENGTH[0], LENGTH[1], &run, &logs]).succeeded();
    assert_eq!(lab.tensors("run/step-00000600"), lab.tensors("calm/step-00000600"));
    // The reader of curves expects only files in the folder.
    std::fs::rename(lab.path("logs/ranks"), lab.path("ranks")).unwrap();
    assert_eq!(lab.curve("logs", "train_loss"), lab.curve("calm-logs", "train_loss"));
}

#[test]
fn killed_and_stopped_ranks_do_not_change_the_result() {
    let lab = Lab::new();
    let running = start(&lab);
    next_checkpoint(&lab, &[]);
    signal(running.rank(1), Signal::KILL);
    running.wait_for_log("is gone: its connection ended without a farewell");
    wait_until("the second start", || {
        let log = std::fs::read_to_string(lab.path("logs/ranks/rank-0.log")).unwrap();
        log.contains("attempt 2: ").then_some(())
    });
    next_checkpoint(&lab, &lab.checkpoints("run"));
    signal(running.rank(0), Signal::STOP);
    let stopped = Instant::now();
    let line = running.wait_for_log("all ranks wait for rank 0, which is silent");
    // The last heartbeat may precede the stop, and the test may notice the report late.
    assert!((SILENCE / 2..10 * SILENCE).contains(&stopped.elapsed()), "{:?}", stopped.elapsed());
    assert!(line.contains("; last known: ") && line.contains(" of step ") && line.contains("(limit 6.0 s)"), "{line}");
    running.wait().exited_with(0).reports("restarts: 1 by crash, 1 by hang").reports("(to 600 of 600)");
    assert_like_undisturbed(&lab);
}

#[test]
fn a_run_that_begins_elsewhere_is_restarted_from_its_own_checkpoint() {
    let lab = Lab::new();
    let path = |key: &str, name: &str| format!("{key}={}", lab.path(name).display());
    let first = [path("run.dir", "first"), path("run.log_dir", "first-logs")];
    lab.train(2, &["train.max_steps=20", &first[0], &first[1]]).succeeded();
    let place = path("checkpoint.resume", "first/step-00000020");
    let mut command = launch(&lab);
    command.args(["--set", &place]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = Running { child: Some(command.spawn().unwrap()), log: lab.path("logs/ranks/launcher.log") };
    next_checkpoint(&lab, &[]);
    signal(running.rank(1), Signal::KILL);
    running.wait().exited_with(0).reports("restarts: 1 by crash").reports("(to 600 of 600)");
    let log = std::fs::read_to_string(lab.path("logs/ranks/rank-0.log")).unwrap();
    let (before, after) = log.split_once("attempt 2: ").unwrap();
    assert!(before.contains(&format!("resuming from {}", lab.path("first/step-00000020").display())), "{before}");
    assert!(after.contains(&format!("resuming from {}/step-", lab.path("run").display())), "{after}");
    assert!(after.contains("the run has already started, so checkpoint.resume "), "{after}");
    let calm = [path("run.dir", "calm"), path("run.log_dir", "calm-logs")];
    lab.train(2, &[LENGTH[0], LENGTH[1], &place, &calm[0], &calm[1]]).succeeded();
    assert_eq!(lab.tensors("run/step-00000600"), lab.tensors("calm/step-00000600"));
}

#[test]
fn a_signal_saves_a_checkpoint_from_which_the_run_resumes() {
    let lab = Lab::new();
    let running = start(&lab);
    next_checkpoint(&lab, &[]);
    signal(running.pid(), Signal::TERM);
    running.wait().exited_with(75).reports("stopped by a signal after saving step").reports("no restart");
    LauncherOutput::of(&mut launch(&lab)).exited_with(0).reports("(to 600 of 600)");
    assert_like_undisturbed(&lab);
}

#[test]
fn a_wrong_configuration_is_reported_in_one_line_and_nothing_starts() {
    let lab = Lab::new();
    let output = LauncherOutput::of(launch(&lab).args(["--set", "optim.epoch=1"])).exited_with(78);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    output.reports("optim.epoch");
    assert!(!lab.path("logs/ranks").exists());
}
