//! `kill -9` of any rank, of mpirun and of the launcher while the real trainer trains: it is noticed at once, nothing stays
//! behind, and the run goes on from its newest checkpoint to the same end, bit by bit.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arinar_checkpoint::step_of;
use arinar_tests::support::launcher::{Process, Running, lives, signal, until, within};
use arinar_tests::support::trainer::Ended;
use arinar_tests::support::trial::{Jobs, SILENCE, Trial};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;

/// A death is noticed by itself, and not because nothing was heard for as long as [`SILENCE`].
const NOTICED: Duration = Duration::from_secs(SILENCE.as_secs() / 2);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Rank(usize),
    Mpirun,
    Launcher,
}

const VICTIMS: [Victim; 4] = [Victim::Rank(0), Victim::Rank(1), Victim::Mpirun, Victim::Launcher];

impl Victim {
    /// Its process, once it has one.
    fn pid(self, running: &Running, below: &[Process]) -> Option<u32> {
        let variable = |rank| format!("OMPI_COMM_WORLD_RANK={rank}");
        let found = match self {
            Self::Launcher => return Some(running.pid()),
            Self::Mpirun => below.iter().find(|process| process.name == "mpirun"),
            Self::Rank(rank) => below.iter().find(|process| process.environment.contains(&variable(rank))),
        };
        found.map(|process| process.pid)
    }

    /// What the launcher says of its death.
    fn obituary(self) -> String {
        match self {
            Self::Rank(rank) => format!("rank {rank} ("),
            _ => "mpirun was killed by SIGKILL".to_owned(),
        }
    }
}

/// When a line of the launcher's log that is newer than this and contains this was written.
#[track_caller]
fn told(running: &Running, part: &str, after: SystemTime) -> SystemTime {
    until(part, || {
        let log = std::fs::read_to_string(&running.log).unwrap_or_default();
        let times = log.lines().filter(|line| line.contains(part)).filter_map(|line| {
            let (time, _) = line.split_once(' ')?;
            humantime::parse_rfc3339(time).ok()
        });
        // The log has milliseconds.
        times.into_iter().find(|time| *time + Duration::from_millis(1) > after)
    })
}

#[test]
fn whoever_is_killed_the_run_comes_to_the_same_end() {
    let trial = Trial::tiny(&["train.max_steps=900", "checkpoint.every=20 steps"]);
    let mut running = trial.start(&[]);
    let mut all = Jobs::default();
    let mut attempt = 1;
    for victim in VICTIMS {
        trial.next_checkpoint();
        let ranks = [running.rank(0), running.rank(1)];
        let below = running.below();
        let mut job = Jobs::default();
        job.see(&below);
        all.see(&below);
        let (killed, moment) = (SystemTime::now(), Instant::now());
        signal(victim.pid(&running, &below).unwrap(), Signal::KILL);
        if victim == Victim::Launcher {
            within(NOTICED, "ranks gone", || (!ranks.into_iter().any(lives)).then_some(()));
        } else {
            let noticed = told(&running, &victim.obituary(), killed).duration_since(killed).unwrap_or_default();
            println!("{victim:?}: noticed after {noticed:?}");
            assert!(noticed < NOTICED, "{victim:?}: {noticed:?}");
        }
        job.assert_gone();
        println!("{victim:?}: all gone after {:?}", moment.elapsed());
        let newest = trial.lab.checkpoints("run").pop().unwrap();
        attempt += 1;
        if victim == Victim::Launcher {
            running = trial.start(&[]);
            attempt = 1;
        }
        let again = format!("attempt {attempt}: ");
        if victim == Victim::Launcher {
            running.says("all 2 ranks have reported");
            until("the next launcher's start", || (trial.log("rank-0").matches(&again).count() == 2).then_some(()));
        }
        assert_eq!(trial.goes_on_from(&again), newest, "{victim:?}");
        println!("{victim:?}: goes on after {:?}", moment.elapsed());
    }
    all.see(&running.below());
    running.wait().ended(0).says("(to 900 of 900)");
    trial.assert_nothing_is_left(&all);
    trial.assert_like_undisturbed();
}

/// Kills over one run of the demo.
const KILLS: usize = 50;
/// Steps that follow when there were enough of them.
const MORE_STEPS: u64 = 40;
/// Pictures of a step, and of an epoch.
const BATCH: u64 = 32;
const PICTURES: u64 = 1906;

/// Kills at random moments until there were enough of them.
struct Killer<'a> {
    trial: &'a Trial,
    running: Running,
    page: SocketAddr,
    random: ChaCha8Rng,
    jobs: Jobs,
}

impl Killer<'_> {
    fn launch(trial: &Trial, page: SocketAddr) -> Running {
        trial.start(&["--status-port", &page.to_string(), "--set", "train.max_steps=1000000"])
    }

    /// The step that the launcher has heard of, if it can be asked.
    fn step(&self) -> Option<u64> {
        let mut stream = TcpStream::connect(self.page).ok()?;
        write!(stream, "GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (_, body) = text.split_once("\r\n\r\n")?;
        serde_json::from_str::<serde_json::Value>(body).ok()?["step"].as_u64()
    }

    /// The furthest step that any start of the run has begun.
    fn furthest(&self) -> u64 {
        self.trial.samples("samples").keys().next_back().map_or(0, |step| step + 1)
    }

    fn pause(&mut self, longest_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.random.random_range(0..longest_ms)));
    }

    /// A victim's process, waiting for its start if it has none.
    fn find(&mut self, victim: Victim) -> u32 {
        until("the victim", || {
            let below = self.running.below();
            self.jobs.see(&below);
            victim.pid(&self.running, &below)
        })
    }

    /// Kills once: in training, when a step was gained, or while the job starts. All that belonged to the job is gone
    /// soon after.
    fn kill(&mut self, in_training: bool) -> Victim {
        if in_training {
            let furthest = self.furthest();
            until("a step that is gained", || (self.step() > Some(furthest)).then_some(()));
        }
        let victim = VICTIMS[self.random.random_range(0..VICTIMS.len())];
        self.find(victim);
        self.pause(if in_training { 150 } else { 600 });
        let pid = self.find(victim);
        signal(pid, Signal::KILL);
        self.jobs.assert_gone();
        if victim == Victim::Launcher {
            // Whoever looks after the launcher starts it again.
            self.running = Self::launch(self.trial, self.page);
        }
        victim
    }
}

/// A number that differs from run to run; it is printed, so that a failure can be looked into.
fn arbitrary() -> u64 {
    let number = u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos()) / 1000;
    println!("kill seed {number}");
    number
}

#[test]
fn fifty_kills_change_nothing() {
    let trial = Trial::demo(&["checkpoint.every=2 steps", "optim.epochs=1000"]);
    let page = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let running = Killer::launch(&trial, page);
    until("the first step", || trial.lab.path("samples").exists().then_some(()));
    let random = ChaCha8Rng::seed_from_u64(arbitrary());
    let mut killer = Killer { trial: &trial, running, page, random, jobs: Jobs::default() };
    let began = Instant::now();
    let mut killed = Vec::new();
    let mut in_training = true;
    while killed.len() < KILLS {
        let victim = killer.kill(in_training);
        killed.push((victim, in_training, killer.furthest()));
        // Three starts in a row that gain no step would end the run, as they should.
        in_training = !in_training || killer.random.random_bool(0.8);
    }
    println!("{killed:?} in {:?}", began.elapsed());
    let all: BTreeSet<String> = killed.iter().map(|(victim, ..)| format!("{victim:?}")).collect();
    assert_eq!(all.len(), VICTIMS.len(), "{all:?}");
    let Killer { running, mut jobs, .. } = killer;
    until("the last start", || (running.below().len() >= 3).then_some(()));
    jobs.see(&running.below());
    signal(running.pid(), Signal::TERM);
    running.wait().ended(75);
    let steps = step_of(trial.lab.checkpoints("run").last().unwrap()).unwrap() + MORE_STEPS;
    let until_then = format!("train.max_steps={steps}");
    let last = trial.start(&["--set", &until_then]);
    until("the ranks", || (last.below().len() >= 3).then_some(()));
    jobs.see(&last.below());
    last.wait().ended(0).says(&format!("(to {steps} of {steps})"));
    trial.assert_nothing_is_left(&jobs);
    Ended::of(trial.undisturbed().args(["--set", &until_then]).output().unwrap()).succeeded();
    trial.assert_same_end();
    // A whole epoch holds each of the pictures once.
    let (epochs, samples) = (steps * BATCH / PICTURES, trial.samples("samples"));
    assert!(epochs >= 1, "{steps} steps");
    for epoch in 0..epochs {
        let seen = samples.values().flatten().filter(|(_, of)| *of == epoch).count();
        assert_eq!(seen as u64, PICTURES, "epoch {epoch}");
    }
}
