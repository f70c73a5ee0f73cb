//! SIGTERM or SIGUSR1 at any rank, not only at the launcher, at any time: the job ends with a checkpoint, or with nothing
//! to save, and with 75, within the time there is. The run goes on from there.
#![allow(clippy::unwrap_used)]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use arinar_tests::s3::{Fault, Faults, S3Server};
use arinar_tests::support::launcher::{Running, Said, signal, until};
use arinar_tests::support::trial::Trial;
use rustix::process::Signal;

/// As `--grace`.
const GRACE: Duration = Duration::from_secs(24);

const REQUESTS: [(usize, Signal); 4] = [(0, Signal::TERM), (1, Signal::USR1), (1, Signal::TERM), (0, Signal::USR1)];

/// A run, and the store that it may be in.
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

    fn heal(&self) {
        self.server.as_ref().unwrap().set_faults(Faults::default());
    }

    /// Asks the job to end, by one of its ranks, and waits until it has.
    fn end(&self, running: Running, (rank, request): (usize, Signal)) -> Said {
        let pid = running.rank(rank);
        let asked = Instant::now();
        signal(pid, request);
        let said = running.wait().ended(75).says("no restart");
        println!("{request:?} at rank {rank}: ended after {:?}", asked.elapsed());
        assert!(asked.elapsed() < GRACE, "{:?}", asked.elapsed());
        said
    }

    fn wait_for(&self, rank_0_says: &str) {
        until(rank_0_says, || self.trial.log("rank-0").contains(rank_0_says).then_some(()));
    }
}

#[test]
fn while_the_program_is_loaded() {
    let run = Preempted::on_disk(&["train.max_steps=5"]);
    for request in REQUESTS {
        let running = run.start();
        let said = run.end(running, request);
        let (early, later) = ("start again to resume", "start again to go on");
        assert!(said.stderr.contains(early) || said.stderr.contains(later), "{}", said.stderr);
    }
    run.trial.run(&[]).ended(0);
    assert_eq!(run.trial.lab.checkpoints("run"), ["step-00000005"]);
}

#[test]
fn while_the_run_starts() {
    let run = Preempted::in_a_bucket(&["train.max_steps=5"]);
    for (request, starts) in REQUESTS[..2].iter().zip(1..) {
        // It asks what is there, and gets no answer.
        run.stall("LIST", "runs");
        let running = run.start();
        until("all ranks of this start", || {
            (run.trial.log("launcher").matches("all 2 ranks have reported").count() == starts).then_some(())
        });
        run.end(running, *request).says("before the first step, so that nothing is lost; start again to go on");
        run.heal();
    }
    Said::by(&mut run.command()).ended(0);
    assert_eq!(run.trial.lab.checkpoints("s3/runs/tiny"), ["step-00000005"]);
}

#[test]
fn in_a_step() {
    let run = Preempted::on_disk(&["train.max_steps=1000000", "checkpoint.every=1h"]);
    let mut saved = 0;
    for request in REQUESTS {
        let running = run.start();
        run.wait_for(&format!("step {}/", saved + 10));
        run.end(running, request).says("stopped by a signal after saving step");
        let newest = run.trial.lab.checkpoints("run").pop().unwrap();
        let step: u64 = newest.strip_prefix("step-").unwrap().parse().unwrap();
        assert!(step >= saved + 10, "{step}");
        saved = step;
    }
}

/// After every step a checkpoint is due anyway, so the one that the signal asks for is there already.
#[test]
fn in_a_step_that_saves() {
    let run = Preempted::on_disk(&["train.max_steps=1000000", "checkpoint.every=1 step"]);
    for (request, starts) in REQUESTS.into_iter().zip(1..) {
        let running = run.start();
        until("all ranks of this start", || {
            (run.trial.log("launcher").matches("all 2 ranks have reported").count() == starts).then_some(())
        });
        let before = run.trial.lab.checkpoints("run").pop();
        until("another checkpoint", || (run.trial.lab.checkpoints("run").pop() > before).then_some(()));
        run.end(running, request).says("stopped by a signal after saving step");
    }
}

#[test]
fn while_a_checkpoint_is_sent() {
    for request in &REQUESTS[..2] {
        let run = Preempted::in_a_bucket(&["train.max_steps=1000000", "checkpoint.every=10 steps"]);
        run.stall("PUT", "runs/tiny/step-00000010/optimizer");
        let running = run.start();
        run.wait_for("saved step-00000010");
        // In the time that is left for it, it cannot be sent.
        run.end(running, *request).says("stopped by a signal after saving step");
        run.wait_for("not everything is in s3://runs/tiny");
        run.heal();
        let newest = run.trial.lab.checkpoints("s3/runs/tiny");
        assert!(newest.is_empty(), "{newest:?}");
        let more = ["--set", "train.max_steps=1"];
        Said::by(run.command().args(more)).ended(0);
        assert!(!run.trial.lab.checkpoints("s3/runs/tiny").is_empty(), "what was left was not sent");
    }
}

#[test]
fn while_the_last_checkpoint_is_sent() {
    for request in &REQUESTS[2..] {
        let run = Preempted::in_a_bucket(&["train.max_steps=15", "checkpoint.every=1h"]);
        run.stall("PUT", "runs/tiny/step-00000015/optimizer");
        let running = run.start();
        run.wait_for("uploading to s3://runs/tiny");
        run.end(running, *request).says("stopped by a signal after saving step 15");
        run.heal();
        Said::by(&mut run.command()).ended(0);
        assert_eq!(run.trial.lab.checkpoints("s3/runs/tiny"), ["step-00000015"]);
    }
}
