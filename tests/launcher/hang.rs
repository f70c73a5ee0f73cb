//! Tests of hangs and time limits of the launcher, under the real mpirun and with a stand-in for the trainer.
#![allow(clippy::unwrap_used)]

use std::{process::Command, time::Duration};

use arinar_tests::support::launcher::{LauncherOutput, Stage, signal, wait_until};
use rustix::process::Signal;

use super::job::{LONG, launcher_settings, stage_with_faults, start_training, two_ranks};

/// Maximum delay of a report after its limit, in seconds. The launcher checks its ranks four times a second and
/// restarts its timers after a pause of three seconds or more in these checks. Times in the report have one decimal.
const MAX_DELAY: f64 = 3.1;

/// The times of the first hang report, in seconds.
struct Report {
    limit: f64,
    /// Time since each rank's last message.
    silent: Vec<f64>,
    /// Time since each rank's last progress.
    stalled: Vec<f64>,
}

impl Report {
    fn of(output: &LauncherOutput) -> Self {
        let (_, report) = output.stderr.split_once("the job hangs: ").unwrap_or_else(|| panic!("{}", output.stderr));
        let (_, limit) = report.lines().next().unwrap().split_once("(limit ").unwrap();
        let rows: Vec<Vec<&str>> = report
            .lines()
            .skip(2)
            .take_while(|line| line.ends_with(" s ago"))
            .map(|line| line.split_whitespace().rev().collect())
            .collect();
        let column = |index: usize| rows.iter().map(|words| words[index].parse().unwrap()).collect();
        Self { limit: limit.strip_suffix(" s)").unwrap().parse().unwrap(), silent: column(5), stalled: column(2) }
    }

    /// Asserts that the limit is as given and that no rank has made progress for as long.
    #[track_caller]
    fn assert_no_progress(&self, limit: f64) {
        self.assert_reported_in_time(limit, self.stalled.iter().copied().fold(f64::INFINITY, f64::min));
    }

    /// Asserts that the limit is as given and that a rank has been silent for as long.
    #[track_caller]
    fn assert_silence(&self, limit: f64) {
        self.assert_reported_in_time(limit, self.silent.iter().copied().fold(0.0, f64::max));
    }

    #[track_caller]
    fn assert_reported_in_time(&self, limit: f64, since: f64) {
        assert_eq!(self.limit, limit);
        assert!((limit..=limit + MAX_DELAY).contains(&since), "reported after {since} s with a limit of {limit} s");
    }
}

/// Runs a job that hangs, without restarts.
fn run_hanging(command: &mut Command) -> LauncherOutput {
    LauncherOutput::of(command.args(["--max-restarts", "0"]))
        .exited_with(1)
        .reports("--max-restarts 0 is used up")
        .reports("the job hung")
}

#[test]
fn a_stopped_rank_is_reported_and_the_job_is_restarted() {
    let stage = stage_with_faults(r#"{"attempt": 1, "rank": 1, "step": 12, "act": "stop"}"#);
    let output = stage
        .run(&two_ranks(&["--silence-limit", "4s"]))
        .exited_with(0)
        .reports("all ranks wait for rank 1, which is silent");
    let output = output.reports("last known: compute of step 11").reports("restarts: 1 by hang");
    let output =
        output.reports("unreachable (stand-in, pid ").reports("\n>    1  stand-in ").reports("\n     0  stand-in ");
    Report::of(&output).assert_silence(4.0);
}

#[test]
fn a_rank_without_progress_is_reported() {
    let stage = stage_with_faults(r#"{"attempt": 1, "rank": 0, "step": 12, "act": "hang"}"#);
    let output = stage
        .run(&two_ranks(&["--hang-floor", "4s"]))
        .exited_with(0)
        .reports("all ranks wait for rank 0, which makes no progress");
    let output =
        output.reports("last known: compute of step 11").reports("30 steps (to 30 of 30), restarts: 1 by hang");
    let output =
        output.reports("no progress (stand-in, pid ").reports("\n>    0  stand-in ").reports("\n     1  stand-in ");
    // The floor applies, because twenty steps of 20 ms are shorter.
    Report::of(&output).assert_no_progress(4.0);
}

#[test]
fn a_step_may_take_the_hang_factor_times_its_usual_duration() {
    let stage =
        Stage::new(r#"{"steps": 30, "step_ms": 200, "faults": [{"attempt": 1, "rank": 0, "step": 4, "act": "hang"}]}"#);
    let output = run_hanging(&mut stage.command(&two_ranks(&["--hang-floor", "100ms", "--hang-factor", "30"])));
    Report::of(&output).assert_no_progress(30.0 * 0.2);
}

#[test]
fn start_up_may_take_as_long_as_its_limit() {
    // Before training, and in the first step, whose duration is unknown.
    for step in [0, 1] {
        let stage = stage_with_faults(&format!(r#"{{"attempt": 1, "rank": 0, "step": {step}, "act": "hang"}}"#));
        let output = run_hanging(&mut stage.command(&two_ranks(&["--start-up-limit", "4s"])));
        Report::of(&output).assert_no_progress(4.0);
    }
}

#[test]
fn waiting_for_data_may_take_one_and_a_half_store_timeouts() {
    let stage = stage_with_faults(r#"{"attempt": 1, "rank": 0, "step": 12, "act": "starve"}"#);
    let output = run_hanging(stage.command(&two_ranks(&["--hang-floor", "4s"])).env("ARINAR_STORE_PATIENCE", "4"));
    Report::of(&output.reports("last known: data_wait of step 11")).assert_no_progress(1.5 * 4.0);
}

#[test]
fn a_paused_launcher_reports_no_hang() {
    let stage = Stage::new(LONG);
    // The disk of a busy machine may also delay the ranks for seconds.
    let running = start_training(&stage, &["--silence-limit", "20s", "--hang-floor", "20s"]);
    signal(running.pid(), Signal::STOP);
    // The pause is longer than the limits.
    std::thread::sleep(Duration::from_secs(23));
    let before = stage.log("rank-0").len();
    signal(running.pid(), Signal::CONT);
    wait_until("more lines of rank 0", || (stage.log("rank-0").len() > before + 1000).then_some(()));
    signal(running.pid(), Signal::TERM);
    running.wait().exited_with(75).reports("no restart");
}

#[test]
fn ranks_receive_the_limits_from_the_flags() {
    let stage = Stage::new(LONG);
    let running = start_training(&stage, &["--silence-limit", "77s", "--grace", "33s"]);
    let launcher = launcher_settings(running.rank(1));
    assert_eq!((launcher.silence_secs, launcher.grace_secs), (77.0, 33.0));
    assert_eq!((launcher.attempt, launcher.full_world), (1, 2));
}

#[test]
fn the_first_step_after_a_restart_gets_the_start_up_limit() {
    let stage = stage_with_faults(
        r#"{"attempt": 1, "rank": 1, "step": 12, "act": "kill"}, {"attempt": 2, "rank": 0, "step": 11, "act": "pause 6000"}"#,
    );
    stage.run(&two_ranks(&["--hang-floor", "4s"])).exited_with(0).reports("(to 30 of 30), restarts: 1 by crash,");
}
