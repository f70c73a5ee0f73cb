//! Tests of the NCCL backend on stand-ins for NCCL and CUDA in host memory, under the real mpirun: it passes the
//! conformance suite, trains bit-identically to MPI, synchronizes with libtorch, and reports failures in one line.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use arinar_collective::{
    Collective, MpiCollective, NcclCollective, conformance,
    cuda::{Gpu, HOST_STAND_IN, HostCopier},
};
use arinar_protocol::exit_code;
use arinar_tests::gpu_stand_in::{Event, GpuStandIn};
use arinar_tests::programs::program;
use arinar_tests::support::launcher::Running;
use arinar_tests::support::trainer::{Lab, ProcessOutput, launch};
use tch::{Device, Kind, Tensor};

/// Environment variable that selects what a child process of this test runs.
const PART_VARIABLE: &str = "ARINAR_TEST_NCCL_CHILD";
/// Steps of a run.
const STEPS: u64 = 60;
/// Steps of a run with three restarts, each some 23 steps after the previous one.
const LONG: u64 = 150;

/// NCCL calls of a training step: the gradients, then each rank's part of the weights.
const CALLS_PER_STEP: u64 = 3;

/// Makes the ranks of a job compute on the CPU and communicate through the stand-in.
fn use_stand_in(stand_in: &GpuStandIn, command: &mut Command, faults: &str) {
    command.envs(stand_in.environment()).envs(stand_in.faults(faults)).env(HOST_STAND_IN, "1");
}

/// Returns a command that runs a part of this test on several ranks.
fn children(stand_in: &GpuStandIn, ranks: usize, part: &str, faults: &str) -> Command {
    let mut command = launch(ranks);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", "nccl::one_rank", "--ignored", "--nocapture"]);
    command.env(PART_VARIABLE, part);
    use_stand_in(stand_in, &mut command, faults);
    command
}

/// Delays all work on the stand-in, which exposes missing waits.
fn delayed(mut command: Command) -> Command {
    command.env("ARINAR_STAND_IN_DELAY_MICROS", "20000");
    command
}

fn run(mut command: Command) -> ProcessOutput {
    ProcessOutput::of(command.output().unwrap())
}

/// Not a test: the other tests run it as a rank.
#[test]
#[ignore = "run by other tests in a separate process"]
fn one_rank() {
    let part = std::env::var(PART_VARIABLE).unwrap();
    if part == "copy" {
        return copy_to_host();
    }
    let ranks = NcclCollective::start(MpiCollective::start().unwrap(), Device::Cpu).unwrap();
    match part.as_str() {
        "conform" => {
            if let Err(error) = conformance(&ranks, Device::Cpu) {
                eprintln!("{error}");
                // Unwinding would wait for the other ranks, which wait for this one.
                arinar_trainer::process_exit::exit_now(exit_code::FAILED);
            }
        }
        "buckets" => sum_of_several_buckets(&ranks),
        other => panic!("{other}"),
    }
}

/// Two full buckets and five elements.
const ELEMENTS: i64 = (2 << 24) + 5;

fn sum_of_several_buckets(ranks: &NcclCollective) {
    let mut flat = Tensor::ones([ELEMENTS], (Kind::Float, Device::Cpu));
    for (index, value) in [(0, 2.0), (1 << 24, 3.0), (ELEMENTS - 1, 4.0)] {
        let _ = flat.narrow(0, index, 1).fill_(value);
    }
    let expected = &flat * ranks.world_size() as f64;
    ranks.all_reduce_sum(&mut flat).unwrap();
    assert!(flat == expected);
}

/// Number of copied tensors.
const COPIES: usize = 3;

/// Copies tensors of up to more than two of the copier's buffers, with sizes that are no multiples of a buffer.
fn copy_to_host() {
    let gpu = Gpu::open(0).unwrap();
    let mut copier = HostCopier::new(&gpu).unwrap();
    let sizes: [i64; COPIES] = [1, (8 << 20) + 1, (40 << 20) + 7];
    for elements in sizes {
        let tensor = Tensor::arange(elements, (Kind::Float, Device::Cpu)).sin();
        let mut copy = vec![0_u8; tensor.numel() * size_of::<f32>()];
        copier.copy(&tensor, &mut copy).unwrap();
        let copied = Tensor::from_data_size(&copy, &[elements], Kind::Float);
        assert!(copied == tensor, "{elements} elements");
    }
}

#[test]
fn nccl_passes_the_conformance_suite() {
    let stand_in = GpuStandIn::new();
    for ranks in [1, 2, 3] {
        run(children(&stand_in, ranks, "conform", "")).succeeded();
    }
    run(delayed(children(&stand_in, 2, "conform", ""))).succeeded();
}

#[test]
fn the_conformance_suite_detects_wrong_sums() {
    let stand_in = GpuStandIn::new();
    let output = run(children(&stand_in, 2, "conform", "rank 1 call 1 garbage"));
    assert_ne!(output.code, Some(0));
    assert!(format!("{}{}", output.stdout, output.stderr).contains("all_reduce_sum is off"), "{}", output.stderr);
}

#[test]
fn large_tensors_are_summed_in_buckets_on_a_separate_stream() {
    let stand_in = GpuStandIn::new();
    run(children(&stand_in, 2, "buckets", "")).succeeded();
    for rank in 0..2 {
        let calls = stand_in.calls(rank);
        let sizes: Vec<usize> = calls.iter().map(|call| call.elements).collect();
        assert_eq!(sizes, [1 << 24, 1 << 24, 5]);
        assert!(calls.iter().all(|call| call.operation == "all_reduce" && call.in_place && call.stream != 0));
        let last = stand_in.entries().into_iter().rfind(|entry| entry.rank == rank).unwrap();
        assert_eq!(last.event, Event::Destroy);
    }
}

#[test]
fn checkpoints_are_copied_through_pinned_memory() {
    let stand_in = GpuStandIn::new();
    run(delayed(children(&stand_in, 1, "copy", ""))).succeeded();
    // Each copy waits for the work that libtorch has enqueued.
    let events: Vec<Event> = stand_in.entries().into_iter().map(|entry| entry.event).collect();
    assert_eq!(events.windows(2).filter(|pair| hands_over(pair, Side::Libtorch)).count(), COPIES);
}

/// The side whose work the other side waits for.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Libtorch,
    Ours,
}

/// Returns true if one side records an event and the other side's stream waits for it.
fn hands_over(pair: &[Event], from: Side) -> bool {
    let [Event::Record(marked), Event::Wait(waiting)] = pair else { return false };
    marked.mark == waiting.mark
        && match from {
            Side::Libtorch => marked.stream == 0 && waiting.stream != 0,
            Side::Ours => marked.stream != 0 && waiting.stream == 0,
        }
}

#[test]
fn collectives_and_libtorch_wait_for_each_other() {
    let stand_in = GpuStandIn::new();
    run(children(&stand_in, 2, "conform", "")).succeeded();
    for rank in 0..2 {
        let entries = stand_in.entries().into_iter().filter(|entry| entry.rank == rank);
        let events: Vec<Event> =
            entries.map(|entry| entry.event).filter(|event| !matches!(event, Event::Init { .. })).collect();
        let is_call = |event: &Event| matches!(event, Event::Call(_));
        // Sequences of calls, each between two hand-overs.
        let mut sequences = 0;
        for (index, event) in events.iter().enumerate().filter(|(_, event)| is_call(event)) {
            let Event::Call(call) = event else { unreachable!() };
            if !is_call(&events[index - 1]) {
                sequences += 1;
                assert!(hands_over(&events[index - 2..index], Side::Libtorch), "before {call:?}");
                assert!(matches!(events[index - 1], Event::Wait(mark) if mark.stream == call.stream));
            }
            if !is_call(&events[index + 1]) {
                assert!(hands_over(&events[index + 1..index + 3], Side::Ours), "after {call:?}");
                assert!(matches!(events[index + 1], Event::Record(mark) if mark.stream == call.stream));
            }
        }
        assert!(sequences >= 4, "{sequences}");
    }
}

fn steps(count: u64) -> String {
    format!("train.max_steps={count}")
}

/// Trains over the stand-in with the faults.
fn train(lab: &Lab, stand_in: &GpuStandIn, faults: &str) -> ProcessOutput {
    let mut command = lab.command(2, &[&steps(STEPS), "train.device=cpu"]);
    use_stand_in(stand_in, &mut command, faults);
    run(command)
}

/// Asserts that the final weights equal those of an undisturbed run over MPI.
fn assert_same_weights_as_mpi(lab: &Lab, count: u64) {
    let path = |name: &str| lab.path(name).display().to_string();
    let (run, logs) = (format!("run.dir={}", path("mpi")), format!("run.log_dir={}", path("mpi-logs")));
    lab.train(2, &[&steps(count), "train.device=cpu", &run, &logs]).succeeded();
    let last = format!("step-{count:08}");
    assert_eq!(lab.tensors(&format!("run/{last}")), lab.tensors(&format!("mpi/{last}")));
}

#[test]
fn training_over_nccl_matches_training_over_mpi() {
    let (lab, stand_in) = (Lab::new(), GpuStandIn::new());
    let output = train(&lab, &stand_in, "rank 0 call 50 slow 200").succeeded();
    assert!(output.stdout.contains("collectives: NCCL 2."), "{}", output.stdout);
    assert_same_weights_as_mpi(&lab, STEPS);
    assert_eq!(lab.curve("logs", "train_loss"), lab.curve("mpi-logs", "train_loss"));
    // One call for the initial weights, then those of every step.
    assert_eq!(stand_in.calls(1).len() as u64, 1 + STEPS * CALLS_PER_STEP);
}

#[test]
fn an_error_ends_the_job_with_one_line() {
    for (fault, part) in [
        ("rank 1 call 20 error", "NCCL, while "),
        ("rank 1 call 20 refuse", "NCCL, while "),
        ("rank 1 init error", "NCCL, while ranks join: "),
    ] {
        let (lab, stand_in) = (Lab::new(), GpuStandIn::new());
        let output = train(&lab, &stand_in, fault);
        assert_eq!(output.code, Some(1), "{fault}: {}", output.stderr);
        // Rank 0 may also notice that rank 1 is gone before mpirun ends it.
        let lines: Vec<&str> = output.stderr.lines().filter(|line| line.contains("arinar-trainer: ")).collect();
        assert!((1..=2).contains(&lines.len()), "{fault}: {}", output.stderr);
        assert!(lines.iter().all(|line| line.starts_with("arinar-trainer: error: NCCL, while ")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains(part)), "{fault}: {lines:?}");
        if !fault.contains("init") {
            assert!(stand_in.entries().iter().any(|entry| entry.rank == 1 && entry.event == Event::Abort), "{fault}");
        }
    }
}

#[test]
fn the_launcher_restarts_the_job_after_nccl_failures() {
    let (lab, stand_in) = (Lab::new(), GpuStandIn::new());
    let mut command = Command::new(program("arinar-launcher"));
    command.arg("--config").arg(lab.path("tiny.yaml")).args(["--nproc", "2", "--hang-floor", "3s"]);
    for value in [&steps(LONG), "train.device=cpu", "checkpoint.every=10 steps"] {
        command.args(["--set", value]);
    }
    // Calls are counted from each start: first an error, then a rank that dies, then a collective that hangs.
    let faults = "rank 1 call 70 error; rank 0 call 71 die; rank 1 call 72 hang";
    use_stand_in(&stand_in, &mut command, faults);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let running = Running { child: Some(child), log: lab.path("logs/ranks/launcher.log") };
    running.wait_for_log("NCCL, while ");
    running.wait_for_log("the job hangs");
    // The error and the killed rank are two crashes. If the other rank reports the killed one first, the launcher logs only
    // that report. On a busy machine, a pause may look like another hang.
    let output = running.wait().exited_with(0).reports("by crash").reports("by hang");
    assert!(!output.stderr.contains("1 by crash"), "{}", output.stderr);
    assert_same_weights_as_mpi(&lab, LONG);
}
