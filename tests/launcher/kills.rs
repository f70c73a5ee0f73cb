//! Tests that kill ranks, mpirun and the launcher with SIGKILL while the real trainer trains: the death is noticed at
//! once, no processes or files are left, and the run resumes from its newest checkpoint and ends bit-identical to an
//! undisturbed one.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arinar_checkpoint::step_of;
use arinar_tests::support::launcher::{Process, Running, is_alive, signal, wait_at_most, wait_until};
use arinar_tests::support::trainer::ProcessOutput;
use arinar_tests::support::trial::{Jobs, SILENCE, Trial};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;

/// Maximum time to notice a death, well below [`SILENCE`], so that the silence limit cannot be the cause.
const MAX_DELAY: Duration = Duration::from_secs(SILENCE.as_secs() / 2);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Rank(usize),
    Mpirun,
    Launcher,
}

const VICTIMS: [Victim; 4] = [Victim::Rank(0), Victim::Rank(1), Victim::Mpirun, Victim::Launcher];

impl Victim {
    /// Returns the victim's process, if it has started.
    fn pid(self, running: &Running, below: &[Process]) -> Option<u32> {
        let variable = |rank| format!("OMPI_COMM_WORLD_RANK={rank}");
        let found = match self {
            Self::Launcher => return Some(running.pid()),
            Self::Mpirun => below.iter().find(|process| process.name == "mpirun"),
            Self::Rank(rank) => below.iter().find(|process| process.environment.contains(&variable(rank))),
        };
        found.map(|process| process.pid)
    }

    /// Returns part of the launcher's message about the victim's death.
    fn death_message(self) -> String {
        match self {
            Self::Rank(rank) => format!("rank {rank} ("),
            _ => "mpirun was killed by SIGKILL".to_owned(),
        }
    }
}

/// Waits for a line of the launcher's log that contains `part` and is newer than `after`, and returns its time.
#[track_caller]
fn time_logged(running: &Running, part: &str, after: SystemTime) -> SystemTime {
    wait_until(part, || {
        let log = std::fs::read_to_string(&running.log).unwrap_or_default();
        let times = log.lines().filter(|line| line.contains(part)).filter_map(|line| {
            let (time, _) = line.split_once(' ')?;
            humantime::parse_rfc3339(time).ok()
        });
        // The log's times are in milliseconds.
        times.into_iter().find(|time| *time + Duration::from_millis(1) > after)
    })
}

#[test]
fn the_run_ends_identically_after_any_process_is_killed() {
    let trial = Trial::tiny(&["train.max_steps=900", "checkpoint.every=20 steps"]);
    let mut running = trial.start(&[]);
    let mut all = Jobs::default();
    let mut attempt = 1;
    for victim in VICTIMS {
        trial.next_checkpoint();
        let ranks = [running.rank(0), running.rank(1)];
        let below = running.descendants();
        let mut job = Jobs::default();
        job.record(&below);
        all.record(&below);
        let (killed, killed_at) = (SystemTime::now(), Instant::now());
        signal(victim.pid(&running, &below).unwrap(), Signal::KILL);
        if victim == Victim::Launcher {
            wait_at_most(MAX_DELAY, "ranks gone", || (!ranks.into_iter().any(is_alive)).then_some(()));
        } else {
            let noticed =
                time_logged(&running, &victim.death_message(), killed).duration_since(killed).unwrap_or_default();
            println!("{victim:?}: noticed after {noticed:?}");
            assert!(noticed < MAX_DELAY, "{victim:?}: {noticed:?}");
        }
        job.assert_gone();
        println!("{victim:?}: all gone after {:?}", killed_at.elapsed());
        let newest = trial.lab.checkpoints("run").pop().unwrap();
        attempt += 1;
        if victim == Victim::Launcher {
            running = trial.start(&[]);
            attempt = 1;
        }
        let again = format!("attempt {attempt}: ");
        if victim == Victim::Launcher {
            running.wait_for_log("all 2 ranks have reported");
            wait_until("the next launcher's start", || {
                (trial.log("rank-0").matches(&again).count() == 2).then_some(())
            });
        }
        assert_eq!(trial.resumed_from(&again), newest, "{victim:?}");
        println!("{victim:?}: resumed after {:?}", killed_at.elapsed());
    }
    all.record(&running.descendants());
    running.wait().exited_with(0).reports("(to 900 of 900)");
    trial.assert_nothing_is_left(&all);
    trial.assert_matches_undisturbed();
}

/// Number of kills in one run of the demo.
const KILLS: usize = 50;
/// Steps after the last kill.
const MORE_STEPS: u64 = 40;
/// Images per step.
const BATCH: u64 = 32;
/// Images per epoch.
const IMAGES: u64 = 1906;

/// Kills processes of a run at random times.
struct Killer<'a> {
    trial: &'a Trial,
    running: Running,
    status_address: SocketAddr,
    random: ChaCha8Rng,
    jobs: Jobs,
}

impl Killer<'_> {
    fn launch(trial: &Trial, status_address: SocketAddr) -> Running {
        trial.start(&["--status-port", &status_address.to_string(), "--set", "train.max_steps=1000000"])
    }

    /// Returns the step in the launcher's status, if the launcher answers.
    fn step(&self) -> Option<u64> {
        let mut stream = TcpStream::connect(self.status_address).ok()?;
        write!(stream, "GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (_, body) = text.split_once("\r\n\r\n")?;
        serde_json::from_str::<serde_json::Value>(body).ok()?["step"].as_u64()
    }

    /// Returns the furthest step that any start of the run has begun.
    fn furthest(&self) -> u64 {
        self.trial.samples("samples").keys().next_back().map_or(0, |step| step + 1)
    }

    fn pause(&mut self, longest_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.random.random_range(0..longest_ms)));
    }

    /// Waits for the victim's process and returns it.
    fn find(&mut self, victim: Victim) -> u32 {
        wait_until("the victim", || {
            let below = self.running.descendants();
            self.jobs.record(&below);
            victim.pid(&self.running, &below)
        })
    }

    /// Kills one process, either in training after a new step or while the job starts, and waits until all processes of
    /// the job are gone.
    fn kill(&mut self, in_training: bool) -> Victim {
        if in_training {
            let furthest = self.furthest();
            wait_until("a new step", || (self.step() > Some(furthest)).then_some(()));
        }
        let victim = VICTIMS[self.random.random_range(0..VICTIMS.len())];
        self.find(victim);
        self.pause(if in_training { 150 } else { 600 });
        let pid = self.find(victim);
        signal(pid, Signal::KILL);
        self.jobs.assert_gone();
        if victim == Victim::Launcher {
            // Restart the launcher, as a supervisor would.
            self.running = Self::launch(self.trial, self.status_address);
        }
        victim
    }
}

/// Returns a seed that differs between runs and prints it, so that a failure can be investigated.
fn random_seed() -> u64 {
    let number = u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos()) / 1000;
    println!("kill seed {number}");
    number
}

#[test]
fn fifty_kills_do_not_change_the_result() {
    let trial = Trial::demo(&["checkpoint.every=2 steps", "optim.epochs=1000"]);
    let status_address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let running = Killer::launch(&trial, status_address);
    wait_until("the first step", || trial.lab.path("samples").exists().then_some(()));
    let random = ChaCha8Rng::seed_from_u64(random_seed());
    let mut killer = Killer { trial: &trial, running, status_address, random, jobs: Jobs::default() };
    let started = Instant::now();
    let mut killed = Vec::new();
    let mut in_training = true;
    while killed.len() < KILLS {
        let victim = killer.kill(in_training);
        killed.push((victim, in_training, killer.furthest()));
        // Three starts in a row without a new step would rightly end the run.
        in_training = !in_training || killer.random.random_bool(0.8);
    }
    println!("{killed:?} in {:?}", started.elapsed());
    let all: BTreeSet<String> = killed.iter().map(|(victim, ..)| format!("{victim:?}")).collect();
    assert_eq!(all.len(), VICTIMS.len(), "{all:?}");
    let Killer { running, mut jobs, .. } = killer;
    wait_until("the last start", || (running.descendants().len() >= 3).then_some(()));
    jobs.record(&running.descendants());
    signal(running.pid(), Signal::TERM);
    running.wait().exited_with(75);
    let steps = step_of(trial.lab.checkpoints("run").last().unwrap()).unwrap() + MORE_STEPS;
    let max_steps = format!("train.max_steps={steps}");
    let last = trial.start(&["--set", &max_steps]);
    wait_until("the ranks", || (last.descendants().len() >= 3).then_some(()));
    jobs.record(&last.descendants());
    last.wait().exited_with(0).reports(&format!("(to {steps} of {steps})"));
    trial.assert_nothing_is_left(&jobs);
    ProcessOutput::of(trial.undisturbed().args(["--set", &max_steps]).output().unwrap()).succeeded();
    trial.assert_same_results();
    // A whole epoch contains each image once.
    let (epochs, samples) = (steps * BATCH / IMAGES, trial.samples("samples"));
    assert!(epochs >= 1, "{steps} steps");
    for epoch in 0..epochs {
        let seen = samples.values().flatten().filter(|(_, of)| *of == epoch).count();
        assert_eq!(seen as u64, IMAGES, "epoch {epoch}");
    }
}
