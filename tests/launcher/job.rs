//! The launcher's jobs, under the real mpirun, with a stand-in for the trainer that fails on demand.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use arinar_protocol::Launcher;
use arinar_tests::support::launcher::{Running, Said, Stage, lives, signal, until, within};
use rustix::process::Signal;

/// A run that is long enough to be disturbed.
const LONG: &str = r#"{"steps": 100000}"#;
/// Everything is gone by then.
const GONE: Duration = Duration::from_secs(60);

fn two<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["--nproc", "2"], more].concat()
}

fn script(fault: &str) -> Stage {
    Stage::new(&format!(r#"{{"steps": 30, "faults": [{fault}]}}"#))
}

/// Starts a long run, and waits until it has a checkpoint.
fn training(stage: &Stage, more: &[&str]) -> Running {
    let running = stage.start(&two(more));
    until("a checkpoint", || stage.path("logs/checkpoint").exists().then_some(()));
    running
}

/// Longest delay of a report after its limit, in seconds. The launcher checks its ranks four times a second; after a pause of
/// three seconds or more in its own checks it excuses them. Times in the report have one decimal.
const LATE: f64 = 3.1;

/// The times of the first hang report, in seconds.
struct Report {
    limit: f64,
    /// For how long each rank has said nothing.
    silent: Vec<f64>,
    /// For how long each rank has not moved.
    still: Vec<f64>,
}

impl Report {
    fn of(said: &Said) -> Self {
        let (_, report) = said.stderr.split_once("the job hangs: ").unwrap_or_else(|| panic!("{}", said.stderr));
        let (_, limit) = report.lines().next().unwrap().split_once("(limit ").unwrap();
        let rows: Vec<Vec<&str>> = report
            .lines()
            .skip(2)
            .take_while(|line| line.ends_with(" s ago"))
            .map(|line| line.split_whitespace().rev().collect())
            .collect();
        let column = |place: usize| rows.iter().map(|words| words[place].parse().unwrap()).collect();
        Self { limit: limit.strip_suffix(" s)").unwrap().parse().unwrap(), silent: column(5), still: column(2) }
    }

    /// No rank has moved for as long as the limit, which is this.
    #[track_caller]
    fn is_of_ranks_that_do_not_move(&self, limit: f64) {
        self.is_told_in_time(limit, self.still.iter().copied().fold(f64::INFINITY, f64::min));
    }

    /// A rank has said nothing for as long as the limit, which is this.
    #[track_caller]
    fn is_of_a_silent_rank(&self, limit: f64) {
        self.is_told_in_time(limit, self.silent.iter().copied().fold(0.0, f64::max));
    }

    #[track_caller]
    fn is_told_in_time(&self, limit: f64, since: f64) {
        assert_eq!(self.limit, limit);
        assert!((limit..=limit + LATE).contains(&since), "{since} s, where the limit is {limit} s");
    }
}

/// Runs a job that hangs, and is not started again.
fn hung(command: &mut Command) -> Said {
    Said::by(command.args(["--max-restarts", "0"])).ended(1).says("--max-restarts 0 is used up").says("the job hung")
}

/// Seconds between two lines of the launcher's log, of which each is the first that says this.
#[track_caller]
fn seconds_between(stage: &Stage, first: &str, second: &str) -> f64 {
    let log = stage.log("launcher");
    let told = |part: &str| {
        let line = log.lines().find(|line| line.contains(part));
        let line = line.unwrap_or_else(|| panic!("{part:?} is missing:\n{log}"));
        humantime::parse_rfc3339(line.split_once(' ').unwrap().0).unwrap()
    };
    told(second).duration_since(told(first)).unwrap().as_secs_f64()
}

/// A shell script to be run. It is written by another process: none that this one starts meanwhile has it open.
fn program_of(stage: &Stage, name: &str, text: &str) -> String {
    let path = stage.path(name).display().to_string();
    let write = "printf '#!/bin/bash\n%s\n' \"$2\" > \"$1\" && chmod +x \"$1\"";
    assert!(Command::new("sh").args(["-c", write, "sh", &path, text]).status().unwrap().success());
    path
}

/// The launcher's address and settings, as a rank receives them.
fn launcher_of(rank: u32) -> Launcher {
    let environment = std::fs::read(format!("/proc/{rank}/environ")).unwrap();
    let text = environment.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"ARINAR_LAUNCHER=")).unwrap();
    Launcher::parse(std::str::from_utf8(text).unwrap()).unwrap()
}

#[test]
fn every_line_is_tagged_and_kept() {
    let stage = script(
        r#"{"attempt": 1, "rank": 0, "step": 2, "act": "flood"}, {"attempt": 1, "rank": 1, "step": 2, "act": "flood"}"#,
    );
    let said =
        stage.run(&two(&[])).ended(0).says("all 2 ranks have reported").says("30 steps (to 30 of 30), no restart");
    for rank in 0..2 {
        let wanted: Vec<String> =
            (0..2000).map(|line| format!("rank {rank} line {line} {}", "x".repeat(line % 300))).collect();
        let shown = said.stdout.lines().filter_map(|line| line.strip_prefix(&format!("[{rank}] ")));
        let kept = stage.log(&format!("rank-{rank}"));
        assert!(kept.starts_with("=== ") && kept.lines().next().unwrap().contains("attempt 1: "), "{kept:.200}");
        assert_eq!(shown.filter(|line| line.contains(" line ")).collect::<Vec<_>>(), wanted);
        assert_eq!(kept.lines().filter(|line| line.contains(" line ")).collect::<Vec<_>>(), wanted);
    }
    assert!(!said.stdout.contains('\x1b'), "colours without a terminal");
}

#[test]
fn a_killed_rank_is_told_at_once_and_the_job_restarted() {
    let stage = script(r#"{"attempt": 1, "rank": 1, "step": 12, "act": "kill"}"#);
    let said = stage.run(&two(&[])).ended(0).says("rank 1 (stand-in, pid ").says("is gone").says("SIGKILL");
    assert!(said.stdout.contains("[0] goes on from step 10"), "{}", said.stdout);
    said.says("restarts: 1 by crash");
    assert!(stage.log("rank-1").contains("attempt 2: "));
}

#[test]
fn a_reason_is_told_and_three_restarts_in_vain_are_enough() {
    let stage = script(r#"{"attempt": 0, "rank": 1, "step": 3, "act": "exit 1 the disk is full"}"#);
    let said = stage.run(&two(&[])).ended(1).says("3 restarts in a row have gained no step");
    assert!(said.stderr.trim_end().ends_with("the last reason: rank 1: the disk is full"), "{}", said.stderr);
}

#[test]
fn some_codes_are_final_and_restarts_can_be_bounded() {
    for code in [75, 78] {
        let stage = script(&format!(r#"{{"attempt": 0, "rank": 0, "step": 3, "act": "exit {code} so it is"}}"#));
        stage.run(&two(&[])).ended(code).says("rank 0: so it is").says("no restart");
    }
    let stage = script(r#"{"attempt": 0, "rank": 0, "step": 3, "act": "exit 7 so it is"}"#);
    stage
        .run(&two(&["--max-restarts", "0"]))
        .ended(1)
        .says("--max-restarts 0 is used up; the last reason: rank 0: so it is");
}

#[test]
fn a_stopped_rank_is_named_ended_and_the_job_restarted() {
    let stage = script(r#"{"attempt": 1, "rank": 1, "step": 12, "act": "stop"}"#);
    let said = stage.run(&two(&["--silence-limit", "4s"])).ended(0).says("all ranks wait for rank 1, which is silent");
    let said = said.says("last known: compute of step 11").says("restarts: 1 by hang");
    let said = said.says("unreachable (stand-in, pid ").says("\n>    1  stand-in ").says("\n     0  stand-in ");
    Report::of(&said).is_of_a_silent_rank(4.0);
}

#[test]
fn a_rank_that_does_not_move_is_named() {
    let stage = script(r#"{"attempt": 1, "rank": 0, "step": 12, "act": "hang"}"#);
    let said =
        stage.run(&two(&["--hang-floor", "4s"])).ended(0).says("all ranks wait for rank 0, which makes no progress");
    let said = said.says("last known: compute of step 11").says("30 steps (to 30 of 30), restarts: 1 by hang");
    let said = said.says("no progress (stand-in, pid ").says("\n>    0  stand-in ").says("\n     1  stand-in ");
    // The floor: twenty steps of 20 ms are less.
    Report::of(&said).is_of_ranks_that_do_not_move(4.0);
}

#[test]
fn a_step_may_take_so_many_times_its_usual_length() {
    let stage =
        Stage::new(r#"{"steps": 30, "step_ms": 200, "faults": [{"attempt": 1, "rank": 0, "step": 4, "act": "hang"}]}"#);
    let said = hung(&mut stage.command(&two(&["--hang-floor", "100ms", "--hang-factor", "30"])));
    Report::of(&said).is_of_ranks_that_do_not_move(30.0 * 0.2);
}

#[test]
fn a_start_may_take_as_long_as_the_flag_says() {
    // Before ranks train, and in the first step, whose length nobody knows.
    for step in [0, 1] {
        let stage = script(&format!(r#"{{"attempt": 1, "rank": 0, "step": {step}, "act": "hang"}}"#));
        let said = hung(&mut stage.command(&two(&["--start-up-limit", "4s"])));
        Report::of(&said).is_of_ranks_that_do_not_move(4.0);
    }
}

#[test]
fn data_may_take_half_as_long_again_as_a_store_is_asked() {
    let stage = script(r#"{"attempt": 1, "rank": 0, "step": 12, "act": "starve"}"#);
    let said = hung(stage.command(&two(&["--hang-floor", "4s"])).env("ARINAR_STORE_PATIENCE", "4"));
    Report::of(&said.says("last known: data_wait of step 11")).is_of_ranks_that_do_not_move(1.5 * 4.0);
}

#[test]
fn a_launcher_that_stood_still_blames_nobody() {
    let stage = Stage::new(LONG);
    // The ranks share a busy machine's disk, which may stop them for seconds, too.
    let running = training(&stage, &["--silence-limit", "20s", "--hang-floor", "20s"]);
    signal(running.pid(), Signal::STOP);
    // Longer than the limits: the pause itself is what this tests.
    std::thread::sleep(Duration::from_secs(23));
    let before = stage.log("rank-0").len();
    signal(running.pid(), Signal::CONT);
    until("more lines of rank 0", || (stage.log("rank-0").len() > before + 1000).then_some(()));
    signal(running.pid(), Signal::TERM);
    running.wait().ended(75).says("no restart");
}

#[test]
fn ranks_are_told_what_the_flags_say() {
    let stage = Stage::new(LONG);
    let running = training(&stage, &["--silence-limit", "77s", "--grace", "33s"]);
    let launcher = launcher_of(running.rank(1));
    assert_eq!((launcher.silence_secs, launcher.grace_secs), (77.0, 33.0));
    assert_eq!((launcher.attempt, launcher.full_world), (1, 2));
}

#[test]
fn the_first_step_of_a_restart_has_the_time_of_a_start() {
    let stage = script(
        r#"{"attempt": 1, "rank": 1, "step": 12, "act": "kill"}, {"attempt": 2, "rank": 0, "step": 11, "act": "pause 6000"}"#,
    );
    stage.run(&two(&["--hang-floor", "4s"])).ended(0).says("(to 30 of 30), restarts: 1 by crash,");
}

#[test]
fn ranks_that_take_leave_and_stay_are_ended() {
    let stage = script(
        r#"{"attempt": 0, "rank": 0, "step": 12, "act": "linger"}, {"attempt": 0, "rank": 1, "step": 12, "act": "linger"}"#,
    );
    stage.run(&two(&["--grace", "1s"])).ended(0).says("has not ended within 1s").says("no restart");
}

#[test]
fn a_rank_that_fails_and_stays_is_ended_with_its_job() {
    for act in ["hang-up", "linger 1"] {
        let stage = script(&format!(r#"{{"attempt": 1, "rank": 1, "step": 12, "act": "{act}"}}"#));
        stage.run(&two(&["--grace", "2s"])).ended(0).says("has not ended within 2s").says("restarts: 1 by crash");
        if act == "hang-up" {
            let time =
                seconds_between(&stage, "is gone: its connection ended without a farewell", "has not ended within");
            assert!((1.99..12.0).contains(&time), "{time} s");
        }
    }
}

#[test]
fn what_does_not_end_in_its_time_is_killed_and_so_is_mpirun() {
    let stage = Stage::new(r#"{"steps": 100000, "deaf": true}"#);
    let deaf = program_of(&stage, "mpirun", "trap '' TERM USR1\nmpirun \"$@\"");
    let mut command = stage.command(&two(&["--grace", "4s", "--mpirun", &deaf]));
    // The launcher does not know the mpirun that the script runs, whose files are left.
    command.env("TMPDIR", stage.folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = Running { child: Some(command.spawn().unwrap()), log: stage.path("logs/ranks/launcher.log") };
    let ranks = [running.rank(0), running.rank(1)];
    running.says("all 2 ranks have reported");
    signal(running.pid(), Signal::TERM);
    running.wait().ended(75).says("without a last checkpoint");
    assert!(!ranks.into_iter().any(lives));
    // From a little less than the time there is, since the log has milliseconds, to what a busy machine may add.
    let time = seconds_between(&stage, "SIGTERM: the job saves a checkpoint", "has not ended within 4s");
    assert!((3.99..12.0).contains(&time), "{time} s");
    let time = seconds_between(&stage, "has not ended within 4s", "the job was killed as requested");
    assert!((4.99..30.0).contains(&time), "{time} s");
}

#[test]
fn a_rank_that_fails_when_it_is_asked_to_end_fails_the_run_if_a_step_is_lost() {
    let lost = "the job ended before its first step; start again to resume from the checkpoint of step 0";
    for (step, code, told) in [(1, 75, lost), (3, 1, "error: rank 0: so it is")] {
        let stage = Stage::new(&format!(
            r#"{{"steps": 30, "deaf": true,
                "faults": [{{"attempt": 0, "rank": 0, "step": {step}, "act": "asked exit 7 so it is"}}]}}"#
        ));
        let running = stage.start(&two(&[]));
        running.says("all 2 ranks have reported");
        signal(running.pid(), Signal::TERM);
        running.wait().ended(code).says(told).says("no restart");
    }
}

#[test]
fn an_mpirun_that_cannot_be_started_is_tried_again_if_it_could_be_once() {
    let stage = script(r#"{"attempt": 0, "rank": 0, "step": 3, "act": "exit 1 so it is"}"#);
    let run = |text: &str| stage.run(&two(&["--mpirun", &program_of(&stage, "mpirun", text)])).ended(1);
    run("rm -- \"$0\"; exec mpirun \"$@\"").says("cannot be started").says("no restart");
    let once = run("[ \"$1\" = --version ] || rm -- \"$0\"; exec mpirun \"$@\"");
    once.says("rank 0: so it is; restart 1 ").says("3 restarts in a row have gained no step").says("cannot be started");
}

#[test]
fn steps_of_earlier_launchers_are_not_counted() {
    let stage = script("");
    std::fs::write(stage.path("logs/checkpoint"), "10").unwrap();
    stage.run(&two(&[])).ended(0).says("20 steps (to 30 of 30), no restart");
}

#[test]
fn a_signal_before_there_are_ranks_is_passed_on_to_them() {
    for asked in [Signal::TERM, Signal::USR1] {
        let stage = Stage::new(LONG);
        let running = stage.start(&two(&["--grace", "30s"]));
        // mpirun may not have begun any rank yet, or some and not all.
        running.mpirun();
        signal(running.pid(), asked);
        let said = running.wait().ended(75).says("no restart");
        assert!(!said.stderr.contains("has not ended within"), "{}", said.stderr);
    }
}

#[test]
fn signals_end_the_job_with_a_checkpoint() {
    for asked in [Signal::TERM, Signal::INT, Signal::USR1, Signal::HUP] {
        let stage = Stage::new(LONG);
        let running = training(&stage, &[]);
        let ranks = [running.rank(0), running.rank(1)];
        signal(running.pid(), asked);
        running.wait().ended(75).says("stopped by a signal after saving step").says("no restart");
        assert!(!ranks.into_iter().any(lives));
    }
}

#[test]
fn a_job_that_does_not_end_is_killed() {
    let stage = Stage::new(r#"{"steps": 100000, "deaf": true}"#);
    let running = training(&stage, &["--grace", "1s"]);
    signal(running.pid(), Signal::TERM);
    running.wait().ended(75).says("has not ended within 1s").says("without a last checkpoint");
    // Where the time is longer than anybody waits, a second SIGINT is enough.
    let stage = Stage::new(r#"{"steps": 100000, "deaf": true}"#);
    let running = training(&stage, &["--grace", "1h"]);
    signal(running.pid(), Signal::INT);
    running.says("SIGINT: the job saves a checkpoint");
    signal(running.pid(), Signal::INT);
    running.wait().ended(75).says("a second SIGINT");
}

#[test]
fn a_signal_between_two_starts_ends_the_launcher() {
    let stage = script(r#"{"attempt": 0, "rank": 0, "step": 3, "act": "exit 1 so it is"}"#);
    let running = stage.start(&two(&[]));
    running.says("restart 3 from the newest checkpoint");
    signal(running.pid(), Signal::TERM);
    running.wait().ended(75).says("SIGTERM while no job was running");
}

#[test]
fn a_killed_launcher_takes_everything_along() {
    let stage = Stage::new(LONG);
    let mut running = training(&stage, &[]);
    let ranks = [running.rank(0), running.rank(1)];
    let all: BTreeSet<u32> = running.below().iter().map(|process| process.pid).chain(ranks).collect();
    assert!(all.len() >= 3, "{all:?}");
    running.child.as_mut().unwrap().kill().unwrap();
    within(GONE, "all processes gone", || (!all.iter().any(|&pid| lives(pid))).then_some(()));
    drop(running);
    // What it held is free again.
    std::fs::remove_file(stage.path("logs/checkpoint")).unwrap();
    let again = training(&stage, &[]);
    signal(again.pid(), Signal::TERM);
    again.wait().ended(75);
}

#[test]
fn a_killed_mpirun_leaves_nothing_and_is_replaced() {
    let stage = Stage::new(LONG);
    let running = training(&stage, &[]);
    let (mpirun, ranks) = (running.mpirun(), [running.rank(0), running.rank(1)]);
    signal(mpirun, Signal::KILL);
    running.says("mpirun was killed by SIGKILL");
    within(GONE, "ranks gone", || (!ranks.into_iter().any(lives)).then_some(()));
    until("the next start", || stage.log("rank-0").contains("attempt 2: ").then_some(()));
    assert!(running.mpirun() != mpirun);
    let left = |pid: u32| {
        let folders = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        folders.filter(|entry| entry.path().join(format!("pid.{pid}")).exists()).count()
    };
    assert_eq!(left(mpirun), 0);
    until("ranks of the next start", || (running.rank(0) != ranks[0]).then_some(()));
    signal(running.pid(), Signal::TERM);
    running.wait().ended(75);
}

#[test]
fn two_launchers_do_not_share_a_run() {
    let stage = Stage::new(LONG);
    let running = training(&stage, &[]);
    let told = stage.run(&two(&[])).ended(78);
    assert_eq!(told.stderr.lines().count(), 1, "{}", told.stderr);
    told.says(&format!("another arinar-launcher (pid {})", running.pid()));
}

#[test]
fn strangers_disturb_nobody() {
    let stage = Stage::new(LONG);
    let running = training(&stage, &[]);
    let launcher = launcher_of(running.rank(0));
    assert!(launcher.addresses.iter().all(|address| address.ip().is_loopback()), "{launcher:?}");
    for garbage in
        [&b"GET / HTTP/1.0\r\n\r\n"[..], b"\0\n", &[b'x'; 1 << 16], b"{\"message\":\"farewell\",\"code\":1}\n"]
    {
        let mut stranger = TcpStream::connect(launcher.addresses[0]).unwrap();
        // It may be hung up on before all is sent.
        let _ = stranger.write_all(garbage);
        let _ = stranger.read_to_end(&mut Vec::new());
    }
    let _silent = TcpStream::connect(launcher.addresses[0]).unwrap();
    signal(running.pid(), Signal::TERM);
    running.wait().ended(75).says("no restart");
}
