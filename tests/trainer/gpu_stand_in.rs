//! The stand-in for libcuda and libnccl does what the trainer's GPU code may rely on, and fails as asked.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use arinar_tests::gpu_stand_in::{Event, GpuStandIn, built};

/// The ranks of a job.
struct Job {
    stand_in: GpuStandIn,
    meeting: tempfile::TempDir,
    world: usize,
    variables: Vec<(&'static str, std::ffi::OsString)>,
}

impl Job {
    fn new(world: usize) -> Self {
        let stand_in = GpuStandIn::new();
        let variables = stand_in.environment();
        Self { stand_in, meeting: tempfile::tempdir().unwrap(), world, variables }
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
            let mut command = Command::new(built().join("arinar-stand-in-gpu-rank"));
            command.args([rank.to_string(), self.world.to_string()]).arg(self.meeting.path()).args(scenario);
            command.envs(self.variables.iter().cloned()).stdout(Stdio::piped()).spawn().unwrap()
        });
        ranks.collect()
    }

    /// What each rank said, all of which succeeded.
    fn run(&self, scenario: &[&str]) -> Vec<String> {
        outputs(self.start(scenario))
    }
}

fn outputs(ranks: impl IntoIterator<Item = Child>) -> Vec<String> {
    let said = |rank: Child| {
        let output = rank.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    ranks.into_iter().map(said).collect()
}

#[track_caller]
fn until(look: impl Fn() -> bool) {
    let began = Instant::now();
    while !look() {
        assert!(began.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn delay(milliseconds: u64) -> [(&'static str, std::ffi::OsString); 1] {
    [("ARINAR_STAND_IN_DELAY_MICROS", (milliseconds * 1000).to_string().into())]
}

#[test]
fn devices_say_what_they_are() {
    let job = Job::new(1).with([("ARINAR_STAND_IN_GPUS", "2".into())]);
    let said = &job.run(&["facts"])[0];
    assert!(said.contains(r#"NCCL 22999, driver 13000, 2 of "stand-in GPU 0" (9, 0) at FFFF:01:00.0"#), "{said}");
    assert!(said.contains("CUDA_ERROR_INVALID_DEVICE"), "{said}");
}

#[test]
fn collectives_give_every_rank_the_right_numbers() {
    for world in [1, 2, 3] {
        let job = Job::new(world);
        assert_eq!(job.run(&["numbers"]), vec!["all right\n"; world]);
        // What the log is for: how large the pieces are, where they go, and that all ranks call the same.
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
fn cudarc_works_with_it_as_with_a_gpu() {
    assert_eq!(Job::new(2).run(&["safe"]), ["all right\n"; 2]);
    assert_eq!(Job::new(2).with(delay(20)).run(&["safe"]), ["all right\n"; 2]);
}

#[test]
fn a_forgotten_wait_shows() {
    assert_eq!(Job::new(2).run(&["early"]), ["all right\n"; 2]);
    // And work can be made slow, so that it shows in programs that hold nothing back.
    for milliseconds in [0, 100] {
        let said = Job::new(1).with(delay(milliseconds)).run(&["events"]).remove(0);
        let took: f32 = said.split(' ').next().unwrap().parse().unwrap();
        assert!(took >= milliseconds as f32, "{said}");
    }
}

#[test]
fn groups_begin_at_their_end() {
    assert_eq!(Job::new(2).run(&["group"]), ["all right\n"; 2]);
}

#[test]
fn ranks_that_call_different_things_are_told() {
    let job = Job::new(2);
    for rank in job.start(&["differ"]) {
        assert!(!rank.wait_with_output().unwrap().status.success());
    }
    let errors = job.stand_in.entries().into_iter().filter(|entry| entry.event == Event::Error { result: 5 });
    assert_eq!(errors.count(), 2);
}

const TWO_STEPS: &str = "step 1\nstep 2\n";

/// What a rank says that gets through two steps and is stopped in the third.
fn stopped(why: &str) -> String {
    format!("{TWO_STEPS}step 3: {why}\naborted\n")
}

#[test]
fn errors_happen_where_they_are_asked_for() {
    for (scenario, fault, mine) in [
        ("steps", "error", "ncclSystemError"),
        ("trainer-steps", "error", "ncclSystemError"),
        ("steps", "refuse", "ncclUnhandledCudaError"),
        ("trainer-steps", "refuse", "ncclUnhandledCudaError"),
    ] {
        let job = Job::new(2).with_faults(&format!("rank 1 call 3 {fault}"));
        // The abort of the first reaches the other.
        assert_eq!(job.run(&[scenario, "4"]), [stopped("ncclRemoteError"), stopped(mine)], "{scenario} {fault}");
        // Each happens once: the same job gets through when it is started again.
        std::fs::remove_file(job.meeting.path().join("id")).unwrap();
        assert_eq!(
            job.run(&[scenario, "4"]),
            [format!("{TWO_STEPS}step 3\nstep 4\n"), format!("{TWO_STEPS}step 3\nstep 4\n")]
        );
    }
}

#[test]
fn a_hang_ends_by_an_abort_alone() {
    let job = Job::new(2).with_faults("rank 1 call 3 hang");
    let mut ranks = job.start(&["steps", "4"]);
    until(|| job.stand_in.calls(0).len() == 3 && job.stand_in.calls(1).len() == 3);
    // No event says that nothing happens; a collective that does not hang takes a millisecond.
    std::thread::sleep(Duration::from_millis(200));
    assert!(ranks.iter_mut().all(|rank| rank.try_wait().unwrap().is_none()));
    assert!(!job.stand_in.entries().iter().any(|entry| matches!(entry.event, Event::Error { .. })));
    std::fs::write(job.meeting.path().join("abort"), "").unwrap();
    let said = outputs(ranks);
    // Each may see the abort of the other first.
    for said in said {
        assert!([stopped("hangs"), stopped("ncclRemoteError")].contains(&said), "{said}");
    }
}

#[test]
fn slow_and_wrong_collectives_are_no_errors() {
    let job = Job::new(2).with_faults("rank 0 call 2 slow 300; rank 1 call 3 garbage");
    let began = Instant::now();
    let said = job.run(&["steps", "4"]);
    assert!(began.elapsed() >= Duration::from_millis(300));
    let wrong = format!("{TWO_STEPS}step 3: wrong\nstep 3\nstep 4\n");
    assert_eq!(said, [format!("{TWO_STEPS}step 3\nstep 4\n"), wrong]);
}

#[test]
fn communicators_that_cannot_be_made_say_so_or_hang() {
    let job = Job::new(2).with_faults("rank 1 init error");
    let mut ranks = job.start(&["steps", "1"]);
    assert_eq!(outputs([ranks.remove(1)]), ["init: ncclSystemError\n"]);
    // The other does not know who will not come.
    assert!(ranks[0].try_wait().unwrap().is_none());
    std::fs::write(job.meeting.path().join("abort"), "").unwrap();
    assert_eq!(outputs(ranks), ["init: hangs\n"]);

    let job = Job::new(2).with_faults("rank 0 init hang");
    let mut ranks = job.start(&["steps", "1"]);
    wait_until_joined(&ranks[1]);
    assert!(ranks.iter_mut().all(|rank| rank.try_wait().unwrap().is_none()));
    ranks[0].kill().unwrap();
    ranks[0].wait().unwrap();
    // But whoever made the id must live.
    assert_eq!(outputs([ranks.remove(1)]), ["init: ncclRemoteError\n"]);

    let job = Job::new(1).with_faults("rank 1 init sideways");
    assert_eq!(job.run(&["steps", "1"]), ["init: ncclInvalidUsage\n"]);
}

/// Waits until a rank has mapped the memory of a communicator.
fn wait_until_joined(rank: &Child) {
    let maps = format!("/proc/{}/maps", rank.id());
    let deadline = Instant::now() + Duration::from_secs(60);
    while !std::fs::read_to_string(&maps).unwrap_or_default().contains("memfd:arinar-stand-in") {
        assert!(Instant::now() < deadline, "the rank does not join");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reads what a rank says up to the end of a step.
fn read_until(rank: &mut Child, line: &str) -> BufReader<std::process::ChildStdout> {
    let mut said = BufReader::new(rank.stdout.take().unwrap());
    let mut text = String::new();
    while !text.ends_with(line) {
        assert!(said.read_line(&mut text).unwrap() > 0, "{text}");
    }
    said
}

#[test]
fn a_killed_rank_is_seen_and_leaves_nothing() {
    let job = Job::new(2);
    let mut ranks = job.start(&["steps", "1000000"]);
    let said = read_until(&mut ranks[0], "step 5\n");
    ranks[1].kill().unwrap();
    ranks[1].wait().unwrap();
    let rest: Vec<String> = said.lines().map_while(Result::ok).collect();
    assert!(rest[rest.len() - 2].ends_with("ncclRemoteError"), "{rest:?}");
    assert!(ranks[0].wait().unwrap().success());
    // The same by a fault.
    let job = Job::new(2).with_faults("rank 0 call 2 die");
    let ranks = job.start(&["steps", "4"]);
    let ended: Vec<_> = ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
    assert!(!ended[0].status.success());
    assert_eq!(String::from_utf8_lossy(&ended[1].stdout), "step 1\nstep 2: ncclRemoteError\naborted\n");
    for folder in ["/dev/shm", "/tmp"] {
        assert!(!holds_stand_in(Path::new(folder)), "{folder}");
    }
}

/// True if the shared memory of a communicator has a name in the folder.
fn holds_stand_in(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("arinar-stand-in"))
}
