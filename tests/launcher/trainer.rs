//! The launcher and the real trainer: however a run is broken off, it ends bit-identical to one that was not.
#![allow(clippy::unwrap_used)]

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use arinar_tests::support::launcher::{Running, Said, program, signal, until};
use arinar_tests::support::trainer::Lab;
use rustix::process::Signal;

/// Long enough to be broken off several times.
const LENGTH: [&str; 2] = ["train.max_steps=600", "checkpoint.every=20 steps"];

/// As `--silence-limit`.
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

/// Waits for a checkpoint that was not there.
fn next_checkpoint(lab: &Lab, known: &[String]) {
    until("a checkpoint", || lab.checkpoints("run").iter().any(|name| !known.contains(name)).then_some(()));
}

/// The run that nothing disturbs.
fn assert_like_undisturbed(lab: &Lab) {
    let place = |name: &str| lab.path(name).display().to_string();
    let (run, logs) = (format!("run.dir={}", place("calm")), format!("run.log_dir={}", place("calm-logs")));
    lab.train(2, &[LENGTH[0], LENGTH[1], &run, &logs]).succeeded();
    assert_eq!(lab.tensors("run/step-00000600"), lab.tensors("calm/step-00000600"));
    // The reader of curves wants files alone.
    std::fs::rename(lab.path("logs/ranks"), lab.path("ranks")).unwrap();
    assert_eq!(lab.curve("logs", "train_loss"), lab.curve("calm-logs", "train_loss"));
}

#[test]
fn killed_and_stopped_ranks_change_nothing() {
    let lab = Lab::new();
    let running = start(&lab);
    next_checkpoint(&lab, &[]);
    signal(running.rank(1), Signal::KILL);
    running.says("is gone: its connection ended without a farewell");
    until("the second start", || {
        let log = std::fs::read_to_string(lab.path("logs/ranks/rank-0.log")).unwrap();
        log.contains("attempt 2: ").then_some(())
    });
    next_checkpoint(&lab, &lab.checkpoints("run"));
    signal(running.rank(0), Signal::STOP);
    let stopped = Instant::now();
    let told = running.says("all ranks wait for rank 0, which is silent");
    // Its last word may have come a moment before it was stopped; and whoever looks may be late.
    assert!((SILENCE / 2..10 * SILENCE).contains(&stopped.elapsed()), "{:?}", stopped.elapsed());
    assert!(told.contains("; last known: ") && told.contains(" of step ") && told.contains("(limit 6.0 s)"), "{told}");
    running.wait().ended(0).says("restarts: 1 by crash, 1 by hang").says("(to 600 of 600)");
    assert_like_undisturbed(&lab);
}

#[test]
fn a_signal_saves_a_checkpoint_from_which_the_run_goes_on() {
    let lab = Lab::new();
    let running = start(&lab);
    next_checkpoint(&lab, &[]);
    signal(running.pid(), Signal::TERM);
    running.wait().ended(75).says("stopped by a signal after saving step").says("no restart");
    Said::by(&mut launch(&lab)).ended(0).says("(to 600 of 600)");
    assert_like_undisturbed(&lab);
}

#[test]
fn a_wrong_configuration_is_one_line_and_nothing_starts() {
    let lab = Lab::new();
    let said = Said::by(launch(&lab).args(["--set", "optim.epoch=1"])).ended(78);
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    said.says("optim.epoch");
    assert!(!lab.path("logs/ranks").exists());
}
