//! The check of memory: of the machine, and of its GPUs.

use arinar_collective::{cuda::Gpu, machine::memory};
use indicatif::DecimalBytes;
use tch::Device;

use super::finding::Finding;
use crate::{
    config::{BatchShare, TrainConfig},
    planning::forecast::{MEMORY_TOLERANCE, MemoryEstimate, Processor, largest_micro},
};

const HOST_MEMORY: &str = "memory";
const GPU_MEMORY: &str = "GPU memory";
const MORE_MEMORY: &str = "start fewer ranks on this machine, or use one with more memory";

/// The ranks on this node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeShare {
    pub world_size: usize,
    pub local_world_size: usize,
    /// The share of a batch that each rank computes in a step.
    pub batch: BatchShare,
}

/// Checks that the memory of this machine, and of its GPUs if the ranks compute on them, holds the model, the optimizer and
/// the activations of its ranks. This rank's GPU stands for all GPUs of the machine.
pub(crate) fn check(config: &TrainConfig, node: NodeShare, device: Device) -> Vec<Finding> {
    // The GPU is opened first, because that uses some of the machine's memory.
    let gpu = match device {
        Device::Cuda(ordinal) => Some(check_gpu(config, node, ordinal)),
        _ => None,
    };
    let host = match memory::available() {
        Some(free) if gpu.is_some() => judge_host_of_gpus(config, node, free, memory::resident()),
        Some(free) => judge_host(config, node, free, memory::resident()),
        None => Finding::note(HOST_MEMORY, "the system does not report how much is free"),
    };
    gpu.into_iter().chain([host]).collect()
}

/// Judges the memory of a machine whose ranks compute on CPUs. `free` bytes are free in addition to the `resident` bytes that
/// each process already uses.
fn judge_host(config: &TrainConfig, node: NodeShare, free: u64, resident: u64) -> Finding {
    let of_micro = |micro| {
        let batch = BatchShare { micro, accumulation: 1 };
        MemoryEstimate::of_rank(config, Processor::Cpu, node.world_size, batch, resident)
    };
    let ranks = node.local_world_size as u64;
    let more = |memory: MemoryEstimate| ranks * (memory.while_training() - resident);
    let memory = of_micro(node.batch.micro);
    let text = format!(
        "about {} per rank, {} more for the {ranks} rank(s) on this machine; {} free",
        DecimalBytes(memory.while_training()),
        DecimalBytes(more(memory)),
        DecimalBytes(free)
    );
    if more(memory) > free {
        let fix = match largest_micro(node.batch.micro, |micro| more(of_micro(micro)) <= free) {
            Some(micro) => {
                format!("set batch.micro={micro} (the global batch stays), or start fewer ranks on this machine")
            }
            None => MORE_MEMORY.to_owned(),
        };
        return Finding::problem(HOST_MEMORY, format!("{text}; {fix}"));
    }
    if is_close(more(memory), free) {
        return Finding::note(HOST_MEMORY, close(&text));
    }
    if more(memory) + ranks * memory.snapshot > free {
        let slower = "which leaves no room for a checkpoint's copy, so training waits while one is written";
        return Finding::note(HOST_MEMORY, format!("{text}, {slower}"));
    }
    Finding::ok(HOST_MEMORY, text)
}

/// Judges the memory of a machine whose ranks compute on GPUs: it holds the processes and the copy of a checkpoint.
fn judge_host_of_gpus(config: &TrainConfig, node: NodeShare, free: u64, resident: u64) -> Finding {
    let memory = MemoryEstimate::of_rank(config, Processor::Gpu, node.world_size, node.batch, resident);
    let (per_rank, ranks) = (memory.on_host(), node.local_world_size as u64);
    let more = ranks * per_rank.saturating_sub(resident);
    let text = format!(
        "about {} of host memory per rank, including a checkpoint's copy, {} more for the {ranks} rank(s) on this \
         machine; {} free",
        DecimalBytes(per_rank),
        DecimalBytes(more),
        DecimalBytes(free)
    );
    if more > free {
        return Finding::problem(HOST_MEMORY, format!("{text}; {MORE_MEMORY}"));
    }
    if is_close(more, free) { Finding::note(HOST_MEMORY, close(&text)) } else { Finding::ok(HOST_MEMORY, text) }
}

/// Returns true if the difference is within the error of the estimate.
fn is_close(needed: u64, free: u64) -> bool {
    needed as f64 * (1.0 + MEMORY_TOLERANCE) > free as f64
}

fn close(text: &str) -> String {
    format!("{text}, which is close: the estimate is accurate to {:.0}%", 100.0 * MEMORY_TOLERANCE)
}

fn check_gpu(config: &TrainConfig, node: NodeShare, ordinal: usize) -> Finding {
    match Gpu::open(ordinal).and_then(|gpu| gpu.memory()) {
        Ok((free, total)) => judge_gpu(config, node, free, total),
        Err(problem) => Finding::note(GPU_MEMORY, format!("cannot determine how much is free: {problem}")),
    }
}

/// Judges the memory of a GPU. A GPU that looks too small is no problem but a note: the accuracy of the estimate is only known
/// for CPUs.
fn judge_gpu(config: &TrainConfig, node: NodeShare, free: u64, total: u64) -> Finding {
    let of_micro = |micro| {
        let batch = BatchShare { micro, accumulation: 1 };
        MemoryEstimate::of_rank(config, Processor::Gpu, node.world_size, batch, 0).on_gpu()
    };
    let needed = of_micro(node.batch.micro);
    let text = format!(
        "about {} per rank, by an estimate that is not calibrated on GPUs; {} of {} free",
        DecimalBytes(needed),
        DecimalBytes(free),
        DecimalBytes(total)
    );
    if needed <= free {
        return Finding::ok(GPU_MEMORY, text);
    }
    let fix = match largest_micro(node.batch.micro, |micro| of_micro(micro) <= free) {
        Some(micro) => format!("set batch.micro={micro} (the global batch stays)"),
        None => "use GPUs with more memory".to_owned(),
    };
    Finding::note(GPU_MEMORY, format!("{text}; if memory runs out, {fix}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planning::check::finding::Verdict;

    const GIGABYTE: u64 = 1_000_000_000;

    fn arinar_b() -> TrainConfig {
        let text = include_str!("../../../../configs/arinar_b.yaml");
        crate::config::parse(text, "arinar_b.yaml", &[]).expect("a shipped configuration")
    }

    fn node(local_world_size: usize, micro: usize) -> NodeShare {
        NodeShare { world_size: 4, local_world_size, batch: BatchShare { micro, accumulation: 1 } }
    }

    #[test]
    fn more_ranks_than_a_machine_can_hold_are_a_problem() {
        let config = arinar_b();
        let finding = |ranks, micro, free| judge_host(&config, node(ranks, micro), free * GIGABYTE, GIGABYTE / 5);
        assert_eq!(finding(4, 2, 64).verdict, Verdict::Ok);
        let crowded = finding(4, 64, 32);
        assert_eq!(crowded.verdict, Verdict::Problem);
        assert!(crowded.text.contains("set batch.micro="), "{}", crowded.text);
        assert!(finding(4, 1, 4).text.contains("start fewer ranks"));
    }

    #[test]
    fn gpus_hold_most_of_the_memory_of_their_ranks() {
        let config = arinar_b();
        // Four A100-80G, as published, in a machine whose memory would not hold a single rank's activations.
        let host = |free| judge_host_of_gpus(&config, node(4, 64), free * GIGABYTE, GIGABYTE / 5);
        assert_eq!(host(32).verdict, Verdict::Ok, "{}", host(32).text);
        assert_eq!(host(4).verdict, Verdict::Problem);
        let gpu = |free| judge_gpu(&config, node(4, 64), free * GIGABYTE, 85 * GIGABYTE);
        assert_eq!(gpu(80).verdict, Verdict::Ok, "{}", gpu(80).text);
        let short = gpu(24);
        assert_eq!(short.verdict, Verdict::Note, "it is an estimate");
        for part in ["not calibrated on GPUs", "24.00 GB of 85.00 GB free", "set batch.micro="] {
            assert!(short.text.contains(part), "{}", short.text);
        }
        assert!(gpu(1).text.contains("use GPUs with more memory"));
    }

    #[test]
    fn a_gpu_that_does_not_answer_is_no_problem() {
        let findings = check(&arinar_b(), node(1, 1), Device::Cuda(1 << 10));
        let [gpu, host] = findings.as_slice() else { panic!("{findings:?}") };
        assert_eq!((gpu.subject.as_str(), gpu.verdict), (GPU_MEMORY, Verdict::Note));
        assert_eq!(host.subject, HOST_MEMORY);
        let findings = check(&arinar_b(), node(1, 1), Device::Cpu);
        assert!(findings.len() == 1 && findings[0].subject == HOST_MEMORY, "{findings:?}");
    }
}
