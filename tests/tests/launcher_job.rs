//! The launcher's jobs, under the real mpirun, with a stand-in for the trainer that fails on demand.
#![allow(clippy::unwrap_used)]

mod launcher_support;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use arinar_heartbeat::Launcher;
use launcher_support::{Running, Stage, lives, signal, until, within};
use rustix::process::Signal;

/// A run that is long enough to be disturbed.
const LONG: &str = r#"{"steps": 100000}"#;
/// Everything is gone by then.
const GONE: Duration = Duration::from_secs(60);

fn two(more: &[&'static str]) -> Vec<&'static str> {
    [&["--nproc", "2"], more].concat()
}

fn script(fault: &str) -> Stage {
    Stage::new(&format!(r#"{{"steps": 30, "faults": [{fault}]}}"#))
}

/// Starts a long run, and waits until it has a checkpoint.
fn training(stage: &Stage, more: &[&'static str]) -> Running {
    let running = stage.start(&two(more));
    until("a checkpoint", || stage.path("logs/checkpoint").exists().then_some(()));
    running
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
    let said = stage.run(&two(&["--silence-limit", "4s"])).ended(0).says("everyone waits for rank 1, which is silent");
    said.says("last known: compute of step 11").says("restarts: 1 by hang");
}

#[test]
fn a_rank_that_does_not_move_is_named() {
    let stage = script(r#"{"attempt": 1, "rank": 0, "step": 12, "act": "hang"}"#);
    let said = stage.run(&two(&["--hang-floor", "4s"])).ended(0).says("everyone waits for rank 0, which does not move");
    said.says("last known: compute of step 11").says("restarts: 1 by hang");
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
    running.wait().ended(75).says("SIGTERM while no job ran");
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
    told.says(&format!("another arinar-launcher (of pid {})", running.pid()));
}

#[test]
fn strangers_disturb_nobody() {
    let stage = Stage::new(LONG);
    let running = training(&stage, &[]);
    let rank = running.rank(0);
    let environment = std::fs::read(format!("/proc/{rank}/environ")).unwrap();
    let text = environment.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"ARINAR_LAUNCHER=")).unwrap();
    let launcher = Launcher::parse(std::str::from_utf8(text).unwrap()).unwrap();
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
