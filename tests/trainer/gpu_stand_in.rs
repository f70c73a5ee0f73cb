//! Tests that the stand-in for libcuda and libnccl behaves as the trainer's GPU code relies on, and fails on demand.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use arinar_tests::gpu_stand_in::{Event, GpuStandIn};
use arinar_tests::programs::program;

/// A job of several ranks.
struct Job {
    stand_in: GpuStandIn,
    meeting_point: tempfile::TempDir,
    world: usize,
    variables: Vec<(&'static str, std::ffi::OsString)>,
}

impl Job {
    fn new(world: usize) -> Self {
        let stand_in = GpuStandIn::new();
        let variables = stand_in.environment();
        Self { stand_in, meeting_point: tempfile::tempdir().unwrap(), world, variables }
    }

    fn with(mut self, variables: impl IntoIterator<Item = (&'static str, std::ffi::OsString)>) -> Self {
        self.variables.extend(variables);
        self
    }

    fn with_faults(self, sentences: &str) -> Self {
        let faults = self.stand_in.faults(sentences);
        self.with(faults)
    }

    fn start(&self, scenario: &[&str]) -> Vec<Child> {
        let ranks = (0..self.world).map(|rank| {
            let mut command = Command::new(program("arinar-stand-in-gpu-rank"));
            command.args([rank.to_string(), self.world.to_string()]).arg(self.meeting_point.path()).args(scenario);
            command.envs(self.variables.iter().cloned()).stdout(Stdio::piped()).spawn().unwrap()
        });
        ranks.collect()
    }

    /// Runs all ranks, which must succeed, and returns the output of each.
    fn run(&self, scenario: &[&str]) -> Vec<String> {
        outputs(self.start(scenario))
    }
}

fn outputs(ranks: impl IntoIterator<Item = Child>) -> Vec<String> {
    let stdout = |rank: Child| {
        let output = rank.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    ranks.into_iter().map(stdout).collect()
}

#[track_caller]
fn wait_until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn delay(milliseconds: u64) -> [(&'static str, std::ffi::OsString); 1] {
    [("ARINAR_STAND_IN_DELAY_MICROS", (milliseconds * 1000).to_string().into())]
}

#[test]
fn devices_report_their_properties() {
    let job = Job::new(1).with([("ARINAR_STAND_IN_GPUS", "2".into())]);
    let output = &job.run(&["facts"])[0];
    assert!(output.contains(r#"NCCL 22999, driver 13000, 2 of "stand-in GPU 0" (9, 0) at FFFF:01:00.0"#), "{output}");
    assert!(output.contains("CUDA_ERROR_INVALID_DEVICE"), "{output}");
}

#[test]
fn collectives_return_correct_results_on_every_rank() {
    for world in [1, 2, 3] {
        let job = Job::new(world);
        assert_eq!(job.run(&["numbers"]), vec!["all right\n"; world]);
        // The log shows the sizes and order of the calls, and that all ranks make the same ones.
        let calls: Vec<_> = (0..world).map(|rank| job.stand_in.calls(rank)).collect();
        assert!(calls.iter().all(|of_rank| of_rank == &calls[0]));
        assert_eq!(
            calls[0].iter().map(|call| call.call).collect::<Vec<_>>(),
            (1..=calls[0].len() as u64).collect::<Vec<_>>()
        );
        let longest = calls[0].iter().max_by_key(|call| call.elements).unwrap();
        assert_eq!(
            (longest.elements, longest.operation.as_str(), longest.kind.as_str()),
            (200_003, "reduce_scatter", "float32")
        );
        let entries = job.stand_in.entries();
        let count = |event: &Event| entries.iter().filter(|entry| entry.event == *event).count();
        assert_eq!((count(&Event::Init { world }), count(&Event::Destroy), count(&Event::Abort)), (world, world, 0));
    }
}

#[test]
fn cudarc_works_with_the_stand_in() {
    assert_eq!(Job::new(2).run(&["safe"]), ["all right\n"; 2]);
    assert_eq!(Job::new(2).with(delay(20)).run(&["safe"]), ["all right\n"; 2]);
}

#[test]
fn a_missing_wait_is_detected() {
    assert_eq!(Job::new(2).run(&["early"]), ["all right\n"; 2]);
    // Work can also be delayed, so that a missing wait is detected in programs that hold nothing back.
    for milliseconds in [0, 100] {
        let output = Job::new(1).with(delay(milliseconds)).run(&["events"]).remove(0);
        let took: f32 = output.split(' ').next().unwrap().parse().unwrap();
        assert!(took >= milliseconds as f32, "{output}");
    }
}

#[test]
fn grouped_calls_start_when_the_group_ends() {
    assert_eq!(Job::new(2).run(&["group"]), ["all right\n"; 2]);
}

#[test]
fn mismatched_calls_return_errors() {
    let job = Job::new(2);
    for rank in job.start(&["differ"]) {
        assert!(!rank.wait_with_output().unwrap().status.success());
    }
    let errors = job.stand_in.entries().into_iter().filter(|entry| entry.event == Event::Error { result: 5 });
    assert_eq!(errors.count(), 2);
}

const TWO_STEPS: &str = "step 1\nstep 2\n";

/// Returns the output of a rank that completes two steps and is stopped in the third.
fn stopped(why: &str) -> String {
    format!("{TWO_STEPS}step 3: {why}\naborted\n")
}

#[test]
fn errors_occur_at_the_requested_calls() {
    for (scenario, fault, own_error) in [
        ("steps", "error", "ncclSystemError"),
        ("trainer-steps", "error", "ncclSystemError"),
        ("steps", "refuse", "ncclUnhandledCudaError"),
        ("trainer-steps", "refuse", "ncclUnhandledCudaError"),
    ] {
        let job = Job::new(2).with_faults(&format!("rank 1 call 3 {fault}"));
        // The abort of rank 1 reaches rank 0.
        assert_eq!(job.run(&[scenario, "4"]), [stopped("ncclRemoteError"), stopped(own_error)], "{scenario} {fault}");
        // Each error occurs once: the same job succeeds when it is started again.
        std::fs::remove_file(job.meeting_point.path().join("id")).unwrap();
        assert_eq!(
            job.run(&[scenario, "4"]),
            [format!("{TWO_STEPS}step 3\nstep 4\n"), format!("{TWO_STEPS}step 3\nstep 4\n")]
        );
    }
}

#[test]
fn only_an_abort_ends_a_hang() {
    let job = Job::new(2).with_faults("rank 1 call 3 hang");
    let mut ranks = job.start(&["steps", "4"]);
    wait_until(|| job.stand_in.calls(0).len() == 3 && job.stand_in.calls(1).len() == 3);
    // No event shows that nothing happens, so wait; a collective that does not hang takes a millisecond.
    std::thread::sleep(Duration::from_millis(200));
    assert!(ranks.iter_mut().all(|rank| rank.try_wait().unwrap().is_none()));
    assert!(!job.stand_in.entries().iter().any(|entry| matches!(entry.event, Event::Error { .. })));
    std::fs::write(job.meeting_point.path().join("abort"), "").unwrap();
    // Each rank may see the abort of the other first.
    for output in outputs(ranks) {
        assert!([stopped("hangs"), stopped("ncclRemoteError")].contains(&output), "{output}");
    }
}

#[test]
fn slow_and_wrong_collectives_return_no_errors() {
    let job = Job::new(2).with_faults("rank 0 call 2 slow 300; rank 1 call 3 garbage");
    let started = Instant::now();
    let output = job.run(&["steps", "4"]);
    assert!(started.elapsed() >= Duration::from_millis(300));
    let wrong = format!("{TWO_STEPS}step 3: wrong\nstep 3\nstep 4\n");
    assert_eq!(output, [format!("{TWO_STEPS}step 3\nstep 4\n"), wrong]);
}

#[test]
fn failed_initialization_returns_an_error_or_hangs() {
    let job = Job::new(2).with_faults("rank 1 init error");
    let mut ranks = job.start(&["steps", "1"]);
    assert_eq!(outputs([ranks.remove(1)]), ["init: ncclSystemError\n"]);
    // The other rank cannot know that rank 1 will not join.
    assert!(ranks[0].try_wait().unwrap().is_none());
    std::fs::write(job.meeting_point.path().join("abort"), "").unwrap();
    assert_eq!(outputs(ranks), ["init: hangs\n"]);

    let job = Job::new(2).with_faults("rank 0 init hang");
    let mut ranks = job.start(&["steps", "1"]);
    wait_until_joined(&ranks[1]);
    assert!(ranks.iter_mut().all(|rank| rank.try_wait().unwrap().is_none()));
    ranks[0].kill().unwrap();
    ranks[0].wait().unwrap();
    // The rank that created the id must stay alive.
    assert_eq!(outputs([ranks.remove(1)]), ["init: ncclRemoteError\n"]);

    let job = Job::new(1).with_faults("rank 1 init sideways");
    assert_eq!(job.run(&["steps", "1"]), ["init: ncclInvalidUsage\n"]);
}

/// Waits until a rank has mapped a communicator's memory.
fn wait_until_joined(rank: &Child) {
    let maps = format!("/proc/{}/maps", rank.id());
    let deadline = Instant::now() + Duration::from_secs(60);
    while !std::fs::read_to_string(&maps).unwrap_or_default().contains("memfd:arinar-stand-in") {
        assert!(Instant::now() < deadline, "the rank did not join");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reads the output of a rank up to a line.
fn read_until(rank: &mut Child, line: &str) -> BufReader<std::process::ChildStdout> {
    let mut output = BufReader::new(rank.stdout.take().unwrap());
    let mut text = String::new();
    while !text.ends_with(line) {
        assert!(output.read_line(&mut text).unwrap() > 0, "{text}");
    }
    output
}

#[test]
fn a_killed_rank_is_detected_and_leaves_no_shared_memory() {
    let job = Job::new(2);
    let mut ranks = job.start(&["steps", "1000000"]);
    let output = read_until(&mut ranks[0], "step 5\n");
    ranks[1].kill().unwrap();
    ranks[1].wait().unwrap();
    let rest: Vec<String> = output.lines().map_while(Result::ok).collect();
    assert!(rest[rest.len() - 2].ends_with("ncclRemoteError"), "{rest:?}");
    assert!(ranks[0].wait().unwrap().success());
    // The same happens if a fault ends the rank.
    let job = Job::new(2).with_faults("rank 0 call 2 die");
    let ranks = job.start(&["steps", "4"]);
    let outputs: Vec<_> = ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
    assert!(!outputs[0].status.success());
    assert_eq!(String::from_utf8_lossy(&outputs[1].stdout), "step 1\nstep 2: ncclRemoteError\naborted\n");
    for folder in ["/dev/shm", "/tmp"] {
        assert!(!holds_stand_in(Path::new(folder)), "{folder}");
    }
}

/// Returns true if the folder contains a communicator's shared memory.
fn holds_stand_in(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("arinar-stand-in"))
}
