//! Measures the overhead of the launcher and of monitoring on the demo, and the time to recover from a killed rank.
//! Prints three tables:
//!
//! 1. images/s for numbers of ranks and threads, and the ratio of 2 ranks x 1 thread to 1 rank x 2 threads;
//! 2. the time from `kill -9` of a rank to the first new step;
//! 3. the step time under the launcher relative to plain mpirun, and the time that the loop itself spends on time
//!    accounting and on the flags that are sent with the all-reduce.
//!
//!     cargo bench --workspace --bench launcher
//!
//! The environment variable `REPEATS` (5) sets the number of runs, of which the median counts. Compared configurations
//! alternate. Run nothing else at the same time.
#![allow(clippy::unwrap_used)]

use std::{hint::black_box, process::Command, time::Instant};

use arinar_protocol::Phase;
use arinar_tests::support::launcher::{signal, wait_until};
use arinar_tests::support::trainer::ProcessOutput;
use arinar_tests::support::trial::Trial;
use arinar_trainer::{
    Vitals,
    step_consensus::{RankFlags, StepConsensus},
};
use rustix::process::Signal;

/// Number of steps of a measured run.
const STEPS: u64 = 120;
/// Number of initial steps that are not counted.
const WARM_UP: u64 = 20;

fn main() {
    let repeats: usize = std::env::var("REPEATS").map_or(5, |text| text.parse().unwrap());
    let trial = Trial::demo(&["checkpoint.every=1h", &format!("train.max_steps={STEPS}")]);
    throughput(&trial, repeats);
    restart(repeats);
    overhead(&trial, repeats);
    flags();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs a training command in empty folders; returns the median step time in seconds.
fn step_seconds(trial: &Trial, command: &mut Command) -> f64 {
    for name in ["run", "logs", "calm", "calm-logs"] {
        let _ = std::fs::remove_dir_all(trial.lab.path(name));
    }
    command.env_remove("ARINAR_SAMPLE_LOG");
    ProcessOutput::of(command.output().unwrap()).succeeded();
    let under_launcher = trial.lab.path("logs/ranks").exists();
    if under_launcher {
        std::fs::remove_dir_all(trial.lab.path("logs/ranks")).unwrap();
    }
    let curve = trial.lab.curve(if under_launcher { "logs" } else { "calm-logs" }, "step_time");
    assert_eq!(curve.len() as u64, STEPS);
    median(curve.range(WARM_UP + 1..).map(|(_, &seconds)| f64::from(seconds)).collect())
}

/// Returns a plain mpirun command that leaves binding to the trainer, like the launcher.
fn plain(trial: &Trial, ranks: usize, threads: usize) -> Command {
    let undisturbed = trial.undisturbed();
    let mut command = Command::new(undisturbed.get_program());
    command.args(["--bind-to", "none"]);
    let mut arguments: Vec<String> = undisturbed.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let count = arguments.iter().position(|argument| argument == "-n").unwrap() + 1;
    arguments[count] = ranks.to_string();
    command.args(arguments).args(["--set", &format!("train.threads={threads}")]);
    command
}

fn throughput(trial: &Trial, repeats: usize) {
    let shapes = [(1, 1), (1, 2), (2, 1), (4, 1)];
    let mut measured = vec![Vec::new(); shapes.len()];
    for _ in 0..repeats {
        for ((ranks, threads), times) in shapes.iter().zip(&mut measured) {
            times.push(step_seconds(trial, &mut plain(trial, *ranks, *threads)));
        }
    }
    let speeds: Vec<f64> = measured.into_iter().map(|times| 32.0 / median(times)).collect();
    println!("1. demo, images/s (median of {repeats} runs, each the median of its steps)");
    for ((ranks, threads), speed) in shapes.iter().zip(&speeds) {
        println!("   {ranks} rank(s) x {threads} thread(s): {speed:8.1}, {:.2} of 1 x 1", speed / speeds[0]);
    }
    println!("   2 ranks x 1 thread / 1 rank x 2 threads: {:.3} (at least 0.95)", speeds[2] / speeds[1]);
}

/// Measures the time from killing a rank to the first step that the run had not reached before.
fn restart(repeats: usize) {
    let trial = Trial::demo(&["checkpoint.every=2 steps", "train.max_steps=1000000", "optim.epochs=1000000"]);
    let running = trial.start(&[]);
    let furthest = || {
        let text = std::fs::read_to_string(trial.lab.path("samples")).unwrap_or_default();
        text.lines().filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()).max()
    };
    let mut times = Vec::new();
    for _ in 0..repeats {
        let before = furthest();
        wait_until("some steps", || (furthest() > before.map(|step| step + 20).or(Some(20))).then_some(()));
        let known = running.rank(1);
        let killed = Instant::now();
        signal(known, Signal::KILL);
        wait_until("the exit of the rank", || (!arinar_tests::support::launcher::is_alive(known)).then_some(()));
        let reached = furthest();
        wait_until("a new step", || (furthest() > reached).then_some(()));
        times.push(killed.elapsed().as_secs_f64());
    }
    signal(running.pid(), Signal::TERM);
    running.wait().exited_with(75);
    let longest = times.iter().copied().fold(0.0, f64::max);
    println!(
        "2. from kill -9 of a rank to the first new step: median {:.2} s, longest {longest:.2} s (under 10)",
        median(times)
    );
}

fn overhead(trial: &Trial, repeats: usize) {
    let mut ratios = Vec::new();
    for _ in 0..repeats {
        let plain = step_seconds(trial, &mut plain(trial, 2, 1));
        let launched = step_seconds(trial, &mut trial.command(&["--set", "train.threads=1"]));
        ratios.push(100.0 * (launched / plain - 1.0));
    }
    println!("3. step time under the launcher relative to plain mpirun: {:+.2}% (under 0.5)", median(ratios.clone()));
    let shown: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:+.2}%")).collect();
    println!("   individual pairs: {}", shown.join(", "));
}

/// Measures the time that a step spends on time accounting and on the flags in the tail of the all-reduce.
fn flags() {
    const ROUNDS: u32 = 100_000;
    let vitals = Vitals::start();
    let start = Instant::now();
    for step in 0..ROUNDS {
        for phase in [Phase::DataWait, Phase::Compute, Phase::AllReduce, Phase::Compute, Phase::Checkpoint] {
            vitals.enter(phase);
        }
        for phase in [Phase::Compute, Phase::AllReduce, Phase::Compute] {
            vitals.enter(phase);
        }
        let busy = vitals.time.read().seconds.compute as f32;
        let tail = RankFlags { busy, loss: 1.0, ..RankFlags::default() }.to_tail(0, 2);
        black_box(StepConsensus::from_tail(black_box(&tail), 2, 2));
        black_box((vitals.time.read(), vitals.time.read()));
        vitals.record_step(u64::from(step), 1.0, 0.1);
    }
    let per_step = start.elapsed() / ROUNDS;
    let start = Instant::now();
    for _ in 0..1000 {
        black_box(vitals.beat());
    }
    let per_beat = start.elapsed() / 1000;
    println!(
        "   overhead in the loop: {per_step:?} per step; a heartbeat, four times a second in a thread: {per_beat:?}"
    );
}
