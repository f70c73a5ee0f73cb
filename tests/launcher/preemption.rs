//! Tests of SIGTERM and SIGUSR1 to any rank, not only to the launcher, at any time: the job saves a checkpoint, unless
//! there is nothing to save, and exits with 75 within the grace period. The run can be resumed.
#![allow(clippy::unwrap_used)]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use arinar_tests::s3::{Fault, Faults, S3Server};
use arinar_tests::support::launcher::{LauncherOutput, Running, signal, wait_until};
use arinar_tests::support::trial::Trial;
use rustix::process::Signal;

/// The value of `--grace`.
const GRACE: Duration = Duration::from_secs(24);

const REQUESTS: [(usize, Signal); 4] = [(0, Signal::TERM), (1, Signal::USR1), (1, Signal::TERM), (0, Signal::USR1)];

/// A run, and the store if it is in a bucket.
struct Preempted {
    trial: Trial,
    server: Option<S3Server>,
}

impl Preempted {
    fn on_disk(overrides: &[&str]) -> Self {
        Self { trial: Trial::tiny(overrides), server: None }
    }

    fn in_a_bucket(overrides: &[&str]) -> Self {
        let run = ["run.dir=s3://runs/tiny", "checkpoint.spool_dir=SPOOL"];
        let mut trial = Trial::tiny(&[&run, overrides].concat());
        let spool = trial.lab.path("spool").display().to_string();
        trial.replace("SPOOL", &spool);
        let server = S3Server::start(&trial.lab.path("s3"));
        server.create_bucket("runs");
        Self { trial, server: Some(server) }
    }

    fn command(&self) -> Command {
        let grace = format!("{}s", GRACE.as_secs());
        let mut command = self.trial.command(&["--grace", &grace]);
        command.envs(self.server.as_ref().map(S3Server::environment).unwrap_or_default());
        command
    }

    fn start(&self) -> Running {
        self.trial.watch(self.command())
    }

    fn stall(&self, method: &'static str, prefix: &str) {
        let stall = Faults::always(Fault::Stall(Duration::from_secs(3600)), &[method]);
        self.server.as_ref().unwrap().set_faults(Faults { prefix: prefix.to_owned(), ..stall });
    }

    fn clear_faults(&self) {
        self.server.as_ref().unwrap().set_faults(Faults::default());
    }

    /// Sends a signal to one of the job's ranks and waits until the job has ended.
    fn preempt(&self, running: Running, (rank, request): (usize, Signal)) -> LauncherOutput {
        let pid = running.rank(rank);
        let requested = Instant::now();
        signal(pid, request);
        let output = running.wait().exited_with(75).reports("no restart");
        println!("{request:?} at rank {rank}: ended after {:?}", requested.elapsed());
        assert!(requested.elapsed() < GRACE, "{:?}", requested.elapsed());
        output
    }

    /// Waits until the log of rank 0 contains `part`.
    fn wait_for(&self, part: &str) {
        wait_until(part, || self.trial.log("rank-0").contains(part).then_some(()));
    }
}

#[test]
fn while_the_program_is_loaded() {
    let run = Preempted::on_disk(&["train.max_steps=5"]);
    for request in REQUESTS {
        let running = run.start();
        let output = run.preempt(running, request);
        output.reports("start again to resume");
    }
    run.trial.run(&[]).exited_with(0);
    assert_eq!(run.trial.lab.checkpoints("run"), ["step-00000005"]);
}

#[test]
fn while_the_run_starts() {
    let run = Preempted::in_a_bucket(&["train.max_steps=5"]);
    for (request, starts) in REQUESTS[..2].iter().zip(1..) {
        // The run lists its checkpoints and gets no response.
        run.stall("LIST", "runs");
        let running = run.start();
        wait_until("all ranks of this start", || {
            (run.trial.log("launcher").matches("all 2 ranks have reported").count() == starts).then_some(())
        });
        run.preempt(running, *request).reports("before the first step, so that nothing is lost; start again to resume");
        run.clear_faults();
    }
    LauncherOutput::of(&mut run.command()).exited_with(0);
    assert_eq!(run.trial.lab.checkpoints("s3/runs/tiny"), ["step-00000005"]);
}

#[test]
fn during_a_step() {
    let run = Preempted::on_disk(&["train.max_steps=1000000", "checkpoint.every=1h"]);
    let mut saved = 0;
    for request in REQUESTS {
        let running = run.start();
        run.wait_for(&format!("step {}/", saved + 10));
        run.preempt(running, request).reports("stopped by a signal after saving step");
        let newest = run.trial.lab.checkpoints("run").pop().unwrap();
        let step: u64 = newest.strip_prefix("step-").unwrap().parse().unwrap();
        assert!(step >= saved + 10, "{step}");
        saved = step;
    }
}

/// A checkpoint is due after every step, so the checkpoint that the signal requests exists already.
#[test]
fn during_a_step_that_saves() {
    let run = Preempted::on_disk(&["train.max_steps=1000000", "checkpoint.every=1 step"]);
    for (request, starts) in REQUESTS.into_iter().zip(1..) {
        let running = run.start();
        wait_until("all ranks of this start", || {
            (run.trial.log("launcher").matches("all 2 ranks have reported").count() == starts).then_some(())
        });
        let before = run.trial.lab.checkpoints("run").pop();
        wait_until("another checkpoint", || (run.trial.lab.checkpoints("run").pop() > before).then_some(()));
        run.preempt(running, request).reports("stopped by a signal after saving step");
    }
}

#[test]
fn while_a_checkpoint_is_uploaded() {
    for request in &REQUESTS[..2] {
        let run = Preempted::in_a_bucket(&["train.max_steps=1000000", "checkpoint.every=10 steps"]);
        run.stall("PUT", "runs/tiny/step-00000010/optimizer");
        let running = run.start();
        run.wait_for("saved step-00000010");
        // The upload cannot be completed within the grace period.
        run.preempt(running, *request).reports("stopped by a signal after saving step");
        run.wait_for("not everything is in s3://runs/tiny");
        run.clear_faults();
        let newest = run.trial.lab.checkpoints("s3/runs/tiny");
        assert!(newest.is_empty(), "{newest:?}");
        let more = ["--set", "train.max_steps=1"];
        LauncherOutput::of(run.command().args(more)).exited_with(0);
        assert!(!run.trial.lab.checkpoints("s3/runs/tiny").is_empty(), "the remaining checkpoint was not uploaded");
    }
}

#[test]
fn while_the_last_checkpoint_is_uploaded() {
    for request in &REQUESTS[2..] {
        let run = Preempted::in_a_bucket(&["train.max_steps=15", "checkpoint.every=1h"]);
        run.stall("PUT", "runs/tiny/step-00000015/optimizer");
        let running = run.start();
        run.wait_for("uploading to s3://runs/tiny");
        run.preempt(running, *request).reports("stopped by a signal after saving step 15");
        run.clear_faults();
        LauncherOutput::of(&mut run.command()).exited_with(0);
        assert_eq!(run.trial.lab.checkpoints("s3/runs/tiny"), ["step-00000015"]);
    }
}
