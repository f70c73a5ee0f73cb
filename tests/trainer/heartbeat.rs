//! Tests of the trainer's heartbeats, its exit when the launcher is gone, and its time accounting. The launcher is a
//! listener in the test; the trainer and mpirun are real.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use arinar_protocol::{BEAT_EVERY, Beat, Launcher, Message, Seconds, environment, exit_code};
use arinar_tests::support::trainer::{Lab, ProcessOutput};
use rustix::process::{Pid, Signal, kill_process};

/// Timeout of every wait.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A stand-in for the launcher, to which the ranks connect.
struct Listener(TcpListener);

impl Listener {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    /// Accepts the next rank's connection.
    fn accept(&self) -> TcpStream {
        let started = Instant::now();
        loop {
            if let Ok((stream, _)) = self.0.accept() {
                stream.set_nonblocking(false).unwrap();
                // A rank sends four heartbeats a second.
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                return stream;
            }
            assert!(started.elapsed() < TIMEOUT, "no rank has connected");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn environment(&self, attempt: u32) -> (&'static str, String) {
        let launcher = Launcher {
            addresses: vec![self.0.local_addr().unwrap()],
            token: "token".into(),
            attempt,
            full_world: 2,
            silence_secs: 20.0,
            grace_secs: 60.0,
        };
        (environment::LAUNCHER, launcher.text())
    }

    /// Answers the next rank and collects its messages until it closes the connection.
    fn collect_messages(&self) -> std::thread::JoinHandle<Vec<Message>> {
        let stream = self.accept();
        std::thread::spawn(move || {
            let mut answers = stream.try_clone().unwrap();
            BufReader::new(stream)
                .lines()
                .map_while(Result::ok)
                .map(|line| {
                    // The rank may already have exited.
                    let _ = answers.write_all(b"\n");
                    Message::parse(&line).unwrap()
                })
                .collect()
        })
    }

    fn stream(&self) -> (TcpStream, BufReader<TcpStream>) {
        let stream = self.accept();
        (stream.try_clone().unwrap(), BufReader::new(stream))
    }
}

fn beats(messages: &[Message]) -> Vec<&Beat> {
    messages.iter().filter_map(|message| if let Message::Beat(beat) = message { Some(beat) } else { None }).collect()
}

fn start(lab: &Lab, ranks: usize, listener: &Listener, attempt: u32, overrides: &[&str]) -> Child {
    let (name, value) = listener.environment(attempt);
    let mut command = lab.command(ranks, overrides);
    command.env(name, value).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn ranks_report_their_progress_and_exit_codes() {
    let (lab, listener) = (Lab::new(), Listener::start());
    let started = Instant::now();
    let job = start(&lab, 2, &listener, 1, &["train.max_steps=40"]);
    let ranks = [listener.collect_messages(), listener.collect_messages()];
    let output = ProcessOutput::of(job.wait_with_output().unwrap()).succeeded();
    let wall = started.elapsed().as_secs_f64();
    let mut seen = Vec::new();
    for messages in ranks.map(|rank| rank.join().unwrap()) {
        let Message::Hello(hello) = &messages[0] else { panic!("{messages:?}") };
        assert_eq!((hello.token.as_str(), hello.world), ("token", 2));
        seen.push(hello.rank);
        let Some(Message::Farewell(farewell)) = messages.last() else { panic!("{messages:?}") };
        assert_eq!((farewell.code, &farewell.reason), (exit_code::DONE, &None));
        let beats = beats(&messages);
        assert!(beats.windows(2).all(|pair| pair[0].step <= pair[1].step && pair[0].marks <= pair[1].marks));
        let total = beats.last().unwrap().seconds.total();
        assert!(total > 0.0 && total < wall, "{total} of {wall}");
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1]);
    assert!(output.stdout.contains("time: ") && output.stdout.contains("% compute"), "{}", output.stdout);
    // Every step is charged in full: its parts add up to at least its duration.
    let curve = |tag: &str| lab.curve("logs", tag).values().sum::<f32>();
    let parts: f32 = ["compute_time", "data_wait", "all_reduce_time", "checkpoint_stall"].into_iter().map(curve).sum();
    let steps = curve("step_time");
    assert!(parts >= 0.99 * steps && parts < wall as f32, "{parts} and {steps}");
    assert_eq!(lab.curve("logs", "slowest_rank").len(), 40);
}

#[test]
fn ranks_exit_when_the_launcher_is_gone() {
    let (lab, listener) = (Lab::new(), Listener::start());
    let mut job = start(&lab, 2, &listener, 1, &["train.max_steps=1000000"]);
    let ranks = [listener.stream(), listener.stream()];
    for (mut answers, messages) in ranks {
        let stepped = messages.lines().map_while(Result::ok).find(|line| {
            let _ = answers.write_all(b"\n");
            matches!(Message::parse(line).unwrap(), Message::Beat(beat) if beat.step > 0)
        });
        assert!(stepped.is_some());
    }
    // Both connections are closed now.
    let started = Instant::now();
    while job.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < TIMEOUT, "the job continues without its launcher");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = ProcessOutput::of(job.wait_with_output().unwrap());
    assert_eq!(output.code, Some(i32::from(exit_code::FAILED)), "{}", output.stderr);
    assert!(output.stderr.contains("the launcher is gone"), "{}", output.stderr);
}

fn seconds_in(path: std::path::PathBuf) -> Option<Seconds> {
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    serde_json::from_value(value["seconds"].clone()).ok()
}

#[test]
fn steps_after_the_last_checkpoint_of_a_killed_run_are_lost_work() {
    /// Minimum lost work in seconds.
    const LOST: f64 = 0.5;
    let (lab, listener) = (Lab::new(), Listener::start());
    let more =
        ["optim.epochs=1000000", "train.max_steps=1000000", "checkpoint.every=1h", "checkpoint.keep_every_epochs=1"];
    let mut job = start(&lab, 0, &listener, 1, &more);
    let rank = listener.collect_messages();
    // The checkpoint of the first epoch; later ones are deleted below.
    let saved = lab.path("run/step-00000006");
    let started = Instant::now();
    let ledger = loop {
        assert!(started.elapsed() < TIMEOUT);
        let (checkpoint, ledger) = (seconds_in(saved.join("state.json")), seconds_in(lab.path("logs/ledger.json")));
        match (checkpoint, ledger) {
            (Some(checkpoint), Some(ledger)) if ledger.total() > checkpoint.total() + LOST => break ledger,
            _ => std::thread::sleep(BEAT_EVERY / 10),
        }
    };
    kill_process(Pid::from_child(&job), Signal::KILL).unwrap();
    job.wait().unwrap();
    rank.join().unwrap();
    for entry in std::fs::read_dir(lab.path("run")).unwrap() {
        let path = entry.unwrap().path();
        if path != saved && path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
    let (checkpoint, last_ledger) =
        (seconds_in(saved.join("state.json")).unwrap(), seconds_in(lab.path("logs/ledger.json")));
    let lost = last_ledger.unwrap().total() - checkpoint.total();
    assert!(lost > LOST && lost >= ledger.total() - checkpoint.total());
    // Long enough for heartbeats that include the lost work.
    let again = start(&lab, 0, &listener, 2, &["train.max_steps=306"]);
    let messages = listener.collect_messages();
    let output = ProcessOutput::of(again.wait_with_output().unwrap()).succeeded();
    let messages = messages.join().unwrap();
    let logged = *lab.curve("logs", "lost_work_total").values().last().unwrap();
    assert!((f64::from(logged) - lost).abs() < 1e-3 * lost, "{logged} and {lost}");
    assert!(output.stdout.contains("lost work"), "{}", output.stdout);
    let last = beats(&messages).pop().unwrap().clone();
    assert_eq!(last.first_step, 6);
    assert!((last.earlier.lost_work - lost).abs() < 1e-6 && last.earlier.compute == checkpoint.compute, "{last:?}");
    assert_eq!(last.seconds.lost_work, 0.0);
    // The sum over both starts.
    let sum = seconds_in(lab.path("run/step-00000306/state.json")).unwrap();
    assert!(sum.total() > ledger.total() && sum.lost_work > LOST, "{sum:?} {ledger:?}");
}

#[test]
fn a_resumed_rank_is_not_a_straggler() {
    let (lab, listener) = (Lab::new(), Listener::start());
    let run = |attempt, steps: u64| {
        let job = start(&lab, 2, &listener, attempt, &[&format!("train.max_steps={steps}")]);
        let ranks = [listener.collect_messages(), listener.collect_messages()];
        ProcessOutput::of(job.wait_with_output().unwrap()).succeeded();
        ranks.map(|rank| beats(&rank.join().unwrap()).pop().unwrap().clone())
    };
    run(1, 200);
    let saved = seconds_in(lab.path("run/step-00000200/state.json")).unwrap();
    let [first, second] = run(2, 220);
    assert_eq!((first.first_step, second.first_step), (200, 200));
    // Rank 0, which is one of the two, reports the time of the previous start; neither counts it as its own.
    let earlier = [first.earlier.compute, second.earlier.compute];
    assert!(earlier == [saved.compute, 0.0] || earlier == [0.0, saved.compute], "{earlier:?} {saved:?}");
    let excess = lab.curve("logs", "slowest_rank_excess");
    let least = excess.range(201..).map(|(_, excess)| *excess).fold(f32::INFINITY, f32::min);
    // If the first 200 steps were charged to one of the last 20, that rank's average would stay 36 times the other's.
    assert!(least < 0.9, "the slowest rank always exceeds the mean by at least {least}");
}

#[test]
fn a_signal_before_the_first_step_exits_with_75() {
    let (lab, listener) = (Lab::new(), Listener::start());
    for signal in [Signal::TERM, Signal::USR1] {
        let job = start(&lab, 0, &listener, 1, &[]);
        // The first message arrives before the start-up begins.
        let (mut answers, mut messages) = listener.stream();
        let mut line = String::new();
        messages.read_line(&mut line).unwrap();
        assert!(line.contains("hello"), "{line}");
        kill_process(Pid::from_child(&job), signal).unwrap();
        let _ = answers.write_all(b"\n");
        let mut last = String::new();
        for line in messages.lines().map_while(Result::ok) {
            let _ = answers.write_all(b"\n");
            last = line;
        }
        let output = ProcessOutput::of(job.wait_with_output().unwrap());
        assert_eq!(output.code, Some(i32::from(exit_code::PREEMPTED)), "{}", output.stderr);
        let Message::Farewell(farewell) = Message::parse(&last).unwrap() else { panic!("{last}") };
        assert_eq!(farewell.code, exit_code::PREEMPTED);
        assert!(output.stderr.contains("stopped by a signal"), "{}", output.stderr);
    }
    // The run is not affected.
    lab.train(0, &["train.max_steps=2"]).succeeded();
}

#[test]
fn a_configuration_is_printed_with_its_defaults() {
    let lab = Lab::new();
    let mut command = lab.command(0, &[]);
    let output = ProcessOutput::of(command.arg("--print-config").output().unwrap()).succeeded();
    let config: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(config["batch"]["global"], 8);
    assert_eq!(config["checkpoint"]["keep_last"], 3);
    let output = lab.train(0, &["batch.globl=3"]);
    assert_eq!(output.code, Some(i32::from(exit_code::CONFIGURATION)));
}
