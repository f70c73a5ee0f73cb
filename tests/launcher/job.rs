//! Tests of the launcher's jobs under the real mpirun, with a stand-in for the trainer that fails on demand.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use arinar_protocol::Launcher;
use arinar_tests::support::launcher::{Running, Stage, is_alive, signal, wait_at_most, wait_until};
use rustix::process::Signal;

/// A run that is long enough to be interrupted.
pub(super) const LONG: &str = r#"{"steps": 100000}"#;
/// Time for all processes to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn two_ranks<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["--nproc", "2"], more].concat()
}

pub(super) fn stage_with_faults(faults: &str) -> Stage {
    Stage::new(&format!(r#"{{"steps": 30, "faults": [{faults}]}}"#))
}

/// Starts a long run and waits until it has a checkpoint.
pub(super) fn start_training(stage: &Stage, more: &[&str]) -> Running {
    let running = stage.start(&two_ranks(more));
    wait_until("a checkpoint", || stage.path("logs/checkpoint").exists().then_some(()));
    running
}

/// Returns the seconds between two lines of the launcher's log, each the first that contains the given text.
#[track_caller]
fn seconds_between(stage: &Stage, first: &str, second: &str) -> f64 {
    let log = stage.log("launcher");
    let time = |part: &str| {
        let line = log.lines().find(|line| line.contains(part));
        let line = line.unwrap_or_else(|| panic!("{part:?} is missing:\n{log}"));
        humantime::parse_rfc3339(line.split_once(' ').unwrap().0).unwrap()
    };
    time(second).duration_since(time(first)).unwrap().as_secs_f64()
}

/// Creates a shell script. Another process writes it, so that no child that this process starts concurrently has it
/// open.
fn create_script(stage: &Stage, name: &str, text: &str) -> String {
    let path = stage.path(name).display().to_string();
    let write = "printf '#!/bin/bash\n%s\n' \"$2\" > \"$1\" && chmod +x \"$1\"";
    assert!(Command::new("sh").args(["-c", write, "sh", &path, text]).status().unwrap().success());
    path
}

/// Returns the launcher's address and settings from a rank's environment.
pub(super) fn launcher_settings(rank: u32) -> Launcher {
    let environment = std::fs::read(format!("/proc/{rank}/environ")).unwrap();
    let text = environment.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"ARINAR_LAUNCHER=")).unwrap();
    Launcher::parse(std::str::from_utf8(text).unwrap()).unwrap()
}

#[test]
fn every_line_is_tagged_and_logged() {
    let stage = stage_with_faults(
        r#"{"attempt": 1, "rank": 0, "step": 2, "act": "flood"}, {"attempt": 1, "rank": 1, "step": 2, "act": "flood"}"#,
    );
    let output = stage
        .run(&two_ranks(&[]))
        .exited_with(0)
        .reports("all 2 ranks have reported")
        .reports("30 steps (to 30 of 30), no restart");
    for rank in 0..2 {
        let expected: Vec<String> =
            (0..2000).map(|line| format!("rank {rank} line {line} {}", "x".repeat(line % 300))).collect();
        let shown = output.stdout.lines().filter_map(|line| line.strip_prefix(&format!("[{rank}] ")));
        let kept = stage.log(&format!("rank-{rank}"));
        assert!(kept.starts_with("=== ") && kept.lines().next().unwrap().contains("attempt 1: "), "{kept:.200}");
        assert_eq!(shown.filter(|line| line.contains(" line ")).collect::<Vec<_>>(), expected);
        assert_eq!(kept.lines().filter(|line| line.contains(" line ")).collect::<Vec<_>>(), expected);
    }
    assert!(!output.stdout.contains('\x1b'), "colours without a terminal");
}

#[test]
fn a_killed_rank_is_reported_and_the_job_is_restarted() {
    let stage = stage_with_faults(r#"{"attempt": 1, "rank": 1, "step": 12, "act": "kill"}"#);
    let output = stage
        .run(&two_ranks(&[]))
        .exited_with(0)
        .reports("rank 1 (stand-in, pid ")
        .reports("is gone")
        .reports("SIGKILL");
    assert!(output.stdout.contains("[0] resumes from step 10"), "{}", output.stdout);
    output.reports("restarts: 1 by crash");
    assert!(stage.log("rank-1").contains("attempt 2: "));
}

#[test]
fn three_restarts_without_progress_end_the_run_with_the_last_reason() {
    let stage = stage_with_faults(r#"{"attempt": 0, "rank": 1, "step": 3, "act": "kill"}"#);
    let output = stage.run(&two_ranks(&[])).exited_with(1).reports("3 restarts in a row have gained no step");
    assert!(output.stderr.contains("the last reason: rank 1 (stand-in, pid "), "{}", output.stderr);
    // A failure that differs from start to start.
    let acts = (1..=4)
        .map(|attempt| format!(r#"{{"attempt": {attempt}, "rank": 1, "step": 3, "act": "exit 1 failure {attempt}"}}"#));
    let stage = stage_with_faults(&acts.collect::<Vec<_>>().join(", "));
    let output = stage.run(&two_ranks(&[])).exited_with(1).reports("3 restarts in a row have gained no step");
    assert!(output.stderr.trim_end().ends_with("the last reason: rank 1: failure 4"), "{}", output.stderr);
}

#[test]
fn the_same_error_twice_at_one_step_ends_the_run() {
    let error = r#"{"attempt": ATTEMPT, "rank": 1, "step": 12, "act": "exit 1 the disk is full"}"#;
    let stage = stage_with_faults(&error.replace("ATTEMPT", "0"));
    let output = stage.run(&two_ranks(&[])).exited_with(1).reports("restart 1 from the newest checkpoint");
    let last = "the job ended twice at step 11 with the same error, giving up; rank 1: the disk is full";
    assert!(output.stderr.trim_end().ends_with(last), "{}", output.stderr);
    // A rank that was killed in between does not hide it.
    let kill = r#"{"attempt": 2, "rank": 0, "step": 11, "act": "kill"}"#;
    let faults = [&error.replace("ATTEMPT", "1"), kill, &error.replace("ATTEMPT", "3")].join(", ");
    let output = stage_with_faults(&faults).run(&two_ranks(&[])).exited_with(1).reports("restart 2 ");
    assert!(output.stderr.trim_end().ends_with(last), "{}", output.stderr);
    // An error that does not come back does not end the run.
    let stage = stage_with_faults(&error.replace("ATTEMPT", "1"));
    stage.run(&two_ranks(&[])).exited_with(0).reports("restarts: 1 by crash");
}

#[test]
fn final_exit_codes_and_max_restarts_prevent_restarts() {
    for code in [75, 78] {
        let stage =
            stage_with_faults(&format!(r#"{{"attempt": 0, "rank": 0, "step": 3, "act": "exit {code} so it is"}}"#));
        stage.run(&two_ranks(&[])).exited_with(code).reports("rank 0: so it is").reports("no restart");
    }
    let stage = stage_with_faults(r#"{"attempt": 0, "rank": 0, "step": 3, "act": "exit 7 so it is"}"#);
    stage
        .run(&two_ranks(&["--max-restarts", "0"]))
        .exited_with(1)
        .reports("--max-restarts 0 is used up; the last reason: rank 0: so it is");
}

#[test]
fn ranks_that_linger_after_their_farewell_are_ended() {
    let stage = stage_with_faults(
        r#"{"attempt": 0, "rank": 0, "step": 12, "act": "linger"}, {"attempt": 0, "rank": 1, "step": 12, "act": "linger"}"#,
    );
    stage.run(&two_ranks(&["--grace", "1s"])).exited_with(0).reports("has not ended within 1s").reports("no restart");
}

#[test]
fn a_failed_rank_that_lingers_is_ended_with_its_job() {
    for act in ["hang-up", "linger 1"] {
        let stage = stage_with_faults(&format!(r#"{{"attempt": 1, "rank": 1, "step": 12, "act": "{act}"}}"#));
        stage
            .run(&two_ranks(&["--grace", "2s"]))
            .exited_with(0)
            .reports("has not ended within 2s")
            .reports("restarts: 1 by crash");
        if act == "hang-up" {
            let time =
                seconds_between(&stage, "is gone: its connection ended without a farewell", "has not ended within");
            assert!((1.99..12.0).contains(&time), "{time} s");
        }
    }
}

#[test]
fn ranks_and_mpirun_are_killed_after_the_grace_period() {
    let stage = Stage::new(r#"{"steps": 100000, "deaf": true}"#);
    let unresponsive = create_script(&stage, "mpirun", "trap '' TERM USR1\nmpirun \"$@\"");
    let mut command = stage.command(&two_ranks(&["--grace", "4s", "--mpirun", &unresponsive]));
    // The launcher does not know the mpirun that the script runs, so mpirun's files stay.
    command.env("TMPDIR", stage.folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = Running { child: Some(command.spawn().unwrap()), log: stage.path("logs/ranks/launcher.log") };
    let ranks = [running.rank(0), running.rank(1)];
    running.wait_for_log("all 2 ranks have reported");
    signal(running.pid(), Signal::TERM);
    running.wait().exited_with(75).reports("without a last checkpoint");
    assert!(!ranks.into_iter().any(is_alive));
    // The lower bounds allow for the log's milliseconds, the upper ones for a busy machine.
    let time = seconds_between(&stage, "SIGTERM: the job saves a checkpoint", "has not ended within 4s");
    assert!((3.99..12.0).contains(&time), "{time} s");
    let time = seconds_between(&stage, "has not ended within 4s", "the job was killed as requested");
    assert!((4.99..30.0).contains(&time), "{time} s");
}

#[test]
fn a_rank_that_fails_during_shutdown_fails_the_run_if_a_step_is_lost() {
    let lost = "the job ended before its first step; start again to resume from the checkpoint of step 0";
    for (step, code, message) in [(1, 75, lost), (3, 1, "error: rank 0: so it is")] {
        let stage = Stage::new(&format!(
            r#"{{"steps": 30, "deaf": true,
                "faults": [{{"attempt": 0, "rank": 0, "step": {step}, "act": "asked exit 7 so it is"}}]}}"#
        ));
        let running = stage.start(&two_ranks(&[]));
        running.wait_for_log("all 2 ranks have reported");
        signal(running.pid(), Signal::TERM);
        running.wait().exited_with(code).reports(message).reports("no restart");
    }
}

#[test]
fn an_mpirun_that_cannot_start_is_retried_only_if_it_started_before() {
    let stage = stage_with_faults(r#"{"attempt": 0, "rank": 0, "step": 3, "act": "exit 1 so it is"}"#);
    let run = |text: &str| stage.run(&two_ranks(&["--mpirun", &create_script(&stage, "mpirun", text)])).exited_with(1);
    run("rm -- \"$0\"; exec mpirun \"$@\"").reports("cannot be started").reports("no restart");
    let once = run("[ \"$1\" = --version ] || rm -- \"$0\"; exec mpirun \"$@\"");
    once.reports("rank 0: so it is; restart 1 ")
        .reports("3 restarts in a row have gained no step")
        .reports("cannot be started");
}

#[test]
fn steps_of_earlier_launchers_are_not_counted() {
    let stage = stage_with_faults("");
    std::fs::write(stage.path("logs/checkpoint"), "10").unwrap();
    stage.run(&two_ranks(&[])).exited_with(0).reports("20 steps (to 30 of 30), no restart");
}

#[test]
fn a_signal_before_the_ranks_start_is_forwarded_to_them() {
    for request in [Signal::TERM, Signal::USR1] {
        let stage = Stage::new(LONG);
        let running = stage.start(&two_ranks(&["--grace", "30s"]));
        // mpirun may have started no rank yet, or only some.
        running.mpirun();
        signal(running.pid(), request);
        let output = running.wait().exited_with(75).reports("no restart");
        assert!(!output.stderr.contains("has not ended within"), "{}", output.stderr);
    }
}

#[test]
fn signals_end_the_job_with_a_checkpoint() {
    for request in [Signal::TERM, Signal::INT, Signal::USR1, Signal::HUP] {
        let stage = Stage::new(LONG);
        let running = start_training(&stage, &[]);
        let ranks = [running.rank(0), running.rank(1)];
        signal(running.pid(), request);
        running.wait().exited_with(75).reports("stopped by a signal after saving step").reports("no restart");
        assert!(!ranks.into_iter().any(is_alive));
    }
}

#[test]
fn a_job_that_does_not_end_is_killed() {
    let stage = Stage::new(r#"{"steps": 100000, "deaf": true}"#);
    let running = start_training(&stage, &["--grace", "1s"]);
    signal(running.pid(), Signal::TERM);
    running.wait().exited_with(75).reports("has not ended within 1s").reports("without a last checkpoint");
    // A second SIGINT ends the grace period.
    let stage = Stage::new(r#"{"steps": 100000, "deaf": true}"#);
    let running = start_training(&stage, &["--grace", "1h"]);
    signal(running.pid(), Signal::INT);
    running.wait_for_log("SIGINT: the job saves a checkpoint");
    signal(running.pid(), Signal::INT);
    running.wait().exited_with(75).reports("a second SIGINT");
}

#[test]
fn a_signal_between_two_starts_ends_the_launcher() {
    let stage = stage_with_faults(r#"{"attempt": 0, "rank": 0, "step": 3, "act": "kill"}"#);
    let running = stage.start(&two_ranks(&[]));
    running.wait_for_log("restart 3 from the newest checkpoint");
    signal(running.pid(), Signal::TERM);
    running.wait().exited_with(75).reports("SIGTERM while no job was running");
}

#[test]
fn a_killed_launcher_leaves_no_processes() {
    let stage = Stage::new(LONG);
    let mut running = start_training(&stage, &[]);
    let ranks = [running.rank(0), running.rank(1)];
    let all: BTreeSet<u32> = running.descendants().iter().map(|process| process.pid).chain(ranks).collect();
    assert!(all.len() >= 3, "{all:?}");
    running.child.as_mut().unwrap().kill().unwrap();
    wait_at_most(EXIT_TIMEOUT, "all processes gone", || (!all.iter().any(|&pid| is_alive(pid))).then_some(()));
    drop(running);
    // Its lock is released.
    std::fs::remove_file(stage.path("logs/checkpoint")).unwrap();
    let again = start_training(&stage, &[]);
    signal(again.pid(), Signal::TERM);
    again.wait().exited_with(75);
}

#[test]
fn a_killed_mpirun_leaves_nothing_and_is_restarted() {
    let stage = Stage::new(LONG);
    let running = start_training(&stage, &[]);
    let (mpirun, ranks) = (running.mpirun(), [running.rank(0), running.rank(1)]);
    signal(mpirun, Signal::KILL);
    running.wait_for_log("mpirun was killed by SIGKILL");
    wait_at_most(EXIT_TIMEOUT, "ranks gone", || (!ranks.into_iter().any(is_alive)).then_some(()));
    wait_until("the next start", || stage.log("rank-0").contains("attempt 2: ").then_some(()));
    assert!(running.mpirun() != mpirun);
    let left = |pid: u32| {
        let folders = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        folders.filter(|entry| entry.path().join(format!("pid.{pid}")).exists()).count()
    };
    assert_eq!(left(mpirun), 0);
    wait_until("ranks of the next start", || (running.rank(0) != ranks[0]).then_some(()));
    signal(running.pid(), Signal::TERM);
    running.wait().exited_with(75);
}

#[test]
fn two_launchers_do_not_share_a_run() {
    let stage = Stage::new(LONG);
    let running = start_training(&stage, &[]);
    let second = stage.run(&two_ranks(&[])).exited_with(78);
    assert_eq!(second.stderr.lines().count(), 1, "{}", second.stderr);
    second.reports(&format!("another arinar-launcher (pid {})", running.pid()));
}

#[test]
fn foreign_connections_do_not_disturb_the_job() {
    let stage = Stage::new(LONG);
    let running = start_training(&stage, &[]);
    let launcher = launcher_settings(running.rank(0));
    assert!(launcher.addresses.iter().all(|address| address.ip().is_loopback()), "{launcher:?}");
    for garbage in
        [&b"GET / HTTP/1.0\r\n\r\n"[..], b"\0\n", &[b'x'; 1 << 16], b"{\"message\":\"farewell\",\"code\":1}\n"]
    {
        let mut connection = TcpStream::connect(launcher.addresses[0]).unwrap();
        // The launcher may close the connection before everything is sent.
        let _ = connection.write_all(garbage);
        let _ = connection.read_to_end(&mut Vec::new());
    }
    let _silent = TcpStream::connect(launcher.addresses[0]).unwrap();
    signal(running.pid(), Signal::TERM);
    running.wait().exited_with(75).reports("no restart");
}
