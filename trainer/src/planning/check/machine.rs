//! What the machine gives: cores, open files, shared memory, memory.

use indicatif::DecimalBytes;
use rustix::process::{Resource, getrlimit};
use tch::Device;

use super::finding::Finding;
use crate::{
    config::{BatchShare, TrainConfig},
    planning::forecast::{EXACTNESS, Memory, Processor, largest_micro},
};
use arinar_collective::{cuda::Gpu, machine::memory};

/// Where Open MPI keeps the memory that ranks of a machine share.
const SHARED_MEMORY: &str = "/dev/shm";
/// Twice what Open MPI takes of it for each rank unless told otherwise (btl_vader_segment_size).
const SHARED_PER_RANK: u64 = 8 << 20;
/// What a rank with a GPU may need of it besides, for NCCL's buffers.
const SHARED_PER_GPU: u64 = 32 << 20;
/// What the finding about the memory of GPUs is called.
const GPU_MEMORY: &str = "GPU memory";
/// Files that a process has open besides shards: libraries, sockets, event files, checkpoints.
const OTHER_FILES: u64 = 256;

/// Whether the ranks here have cores for their threads.
pub fn cores(ranks: usize, threads: usize) -> Finding {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let told = format!("{ranks} rank(s) here of {threads} thread(s), {cores} core(s)");
    if cores > 0 && ranks * threads > cores {
        let cure = "they get in each other's way; start fewer ranks, or set train.threads lower";
        return Finding::note("cores", format!("{told}: {cure}"));
    }
    Finding::ok("cores", told)
}

/// Whether a process may open that many shards at once.
pub fn open_files(shards: u64) -> Finding {
    let needed = shards + OTHER_FILES;
    match getrlimit(Resource::Nofile).maximum {
        Some(limit) if limit < needed => Finding::problem(
            "open files",
            format!(
                "the limit is {limit}, and {needed} are needed; raise it (ulimit -Hn), or set data.shuffle_window lower"
            ),
        ),
        Some(limit) => Finding::ok("open files", format!("{needed} are needed, the limit is {limit}")),
        None => Finding::ok("open files", "no limit"),
    }
}

/// Whether the ranks here find room for the memory they share.
pub fn shared_memory(ranks: usize, gpus: bool) -> Option<Finding> {
    if ranks < 2 {
        return None;
    }
    let disk = rustix::fs::statvfs(SHARED_MEMORY).ok()?;
    Some(shared_memory_of(disk.f_bavail * disk.f_frsize, ranks, gpus))
}

fn shared_memory_of(free: u64, ranks: usize, gpus: bool) -> Finding {
    let needed = (SHARED_PER_RANK + if gpus { SHARED_PER_GPU } else { 0 }) * ranks as u64;
    let (free_text, needed_text) = (DecimalBytes(free), DecimalBytes(needed));
    if free < needed {
        let cure = "raise it (--shm-size of a container), or ranks end with SIGBUS";
        return Finding::problem(SHARED_MEMORY, format!("{free_text} are free, {needed_text} needed; {cure}"));
    }
    Finding::ok(SHARED_MEMORY, format!("{free_text} are free, {needed_text} needed"))
}

/// Ranks that share the memory of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Ranks of the run.
    pub world: usize,
    /// Ranks on this machine.
    pub here: usize,
    /// What each of them takes through the model.
    pub batch: BatchShare,
}

/// Whether the ranks here find room for model, optimizer and activations: in the memory of the machine, or in that of
/// the GPUs where they compute on such. This rank's GPU stands for all of the machine.
pub fn memory(config: &TrainConfig, crowd: Crowd, device: Device) -> Vec<Finding> {
    // First: to look at a GPU takes some of the machine's memory.
    let gpu = match device {
        Device::Cuda(ordinal) => Some(gpu_memory(config, crowd, ordinal)),
        _ => None,
    };
    let here = match memory::available() {
        Some(free) if gpu.is_some() => beside_gpus(config, crowd, free, memory::resident()),
        Some(free) => memory_of(config, crowd, free, memory::resident()),
        None => Finding::note("memory", "the system does not say how much is free"),
    };
    gpu.into_iter().chain([here]).collect()
}

/// With `free` bytes besides the `held` bytes that each process holds already.
fn memory_of(config: &TrainConfig, crowd: Crowd, free: u64, held: u64) -> Finding {
    let of_micro = |micro| {
        let batch = BatchShare { micro, accumulation: 1 };
        Memory::of_rank(config, Processor::Cpu, crowd.world, batch, held)
    };
    let here = crowd.here as u64;
    let more = |memory: Memory| here * (memory.while_training() - held);
    let memory = of_micro(crowd.batch.micro);
    let (rank, all, free_text) =
        (DecimalBytes(memory.while_training()), DecimalBytes(more(memory)), DecimalBytes(free));
    let told = format!("about {rank} a rank, so {all} more for {here} rank(s) here; {free_text} are free");
    if more(memory) > free {
        let cure = match largest_micro(crowd.batch.micro, |micro| more(of_micro(micro)) <= free) {
            Some(micro) => format!("set batch.micro={micro} (the global batch stays), or start fewer ranks here"),
            None => "start fewer ranks on this machine, or take one with more memory".to_owned(),
        };
        return Finding::problem("memory", format!("{told}; {cure}"));
    }
    if is_close(more(memory), free) {
        return Finding::note("memory", close(&told));
    }
    if more(memory) + here * memory.snapshot > free {
        let slower = "without room for a checkpoint's copy, so training waits while one is written";
        return Finding::note("memory", format!("{told}, {slower}"));
    }
    Finding::ok("memory", told)
}

/// The same of ranks that compute on GPUs: the processes themselves, and a checkpoint on its way to the disk.
fn beside_gpus(config: &TrainConfig, crowd: Crowd, free: u64, held: u64) -> Finding {
    let memory = Memory::of_rank(config, Processor::Gpu, crowd.world, crowd.batch, held);
    let (rank, here) = (memory.beside_gpu(), crowd.here as u64);
    let more = here * rank.saturating_sub(held);
    let told = format!(
        "about {} a rank beside its GPU, with a checkpoint's copy, so {} more for {here} rank(s) here; {} are free",
        DecimalBytes(rank),
        DecimalBytes(more),
        DecimalBytes(free)
    );
    if more > free {
        let cure = "start fewer ranks on this machine, or take one with more memory";
        return Finding::problem("memory", format!("{told}; {cure}"));
    }
    if is_close(more, free) { Finding::note("memory", close(&told)) } else { Finding::ok("memory", told) }
}

fn is_close(needed: u64, free: u64) -> bool {
    needed as f64 * (1.0 + EXACTNESS) > free as f64
}

fn close(told: &str) -> String {
    format!("{told}, which is close: the estimate is exact to {:.0}%", 100.0 * EXACTNESS)
}

fn gpu_memory(config: &TrainConfig, crowd: Crowd, ordinal: usize) -> Finding {
    match Gpu::open(ordinal).and_then(|gpu| gpu.memory()) {
        Ok((free, all)) => gpu_memory_of(config, crowd, free, all),
        Err(problem) => Finding::note(GPU_MEMORY, format!("how much is free cannot be found out: {problem}")),
    }
}

/// No GPU has shown how good the estimate is: nobody is kept from trying.
fn gpu_memory_of(config: &TrainConfig, crowd: Crowd, free: u64, all: u64) -> Finding {
    let of_micro = |micro| {
        let batch = BatchShare { micro, accumulation: 1 };
        Memory::of_rank(config, Processor::Gpu, crowd.world, batch, 0).on_gpu()
    };
    let needed = of_micro(crowd.batch.micro);
    let told = format!(
        "about {} a rank by an estimate that no GPU has confirmed; {} of {} are free",
        DecimalBytes(needed),
        DecimalBytes(free),
        DecimalBytes(all)
    );
    if needed <= free {
        return Finding::ok(GPU_MEMORY, told);
    }
    let cure = match largest_micro(crowd.batch.micro, |micro| of_micro(micro) <= free) {
        Some(micro) => format!("set batch.micro={micro} (the global batch stays)"),
        None => "take GPUs with more memory".to_owned(),
    };
    Finding::note(GPU_MEMORY, format!("{told}; should it not be enough, {cure}"))
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

    fn crowd(here: usize, micro: usize) -> Crowd {
        Crowd { world: 4, here, batch: BatchShare { micro, accumulation: 1 } }
    }

    #[test]
    fn ranks_that_are_more_than_a_machine_holds() {
        let config = arinar_b();
        let finding = |here, micro, free| memory_of(&config, crowd(here, micro), free * GIGABYTE, GIGABYTE / 5);
        assert_eq!(finding(4, 2, 64).verdict, Verdict::Ok);
        let crowded = finding(4, 64, 32);
        assert_eq!(crowded.verdict, Verdict::Problem);
        assert!(crowded.said.contains("set batch.micro="), "{}", crowded.said);
        assert!(finding(4, 1, 4).said.contains("start fewer ranks"));
    }

    #[test]
    fn gpus_hold_what_the_machine_need_not() {
        let config = arinar_b();
        // Four A100-80G, as published, in a machine whose memory would not hold a single rank's activations.
        let host = |free| beside_gpus(&config, crowd(4, 64), free * GIGABYTE, GIGABYTE / 5);
        assert_eq!(host(32).verdict, Verdict::Ok, "{}", host(32).said);
        assert_eq!(host(4).verdict, Verdict::Problem);
        let gpu = |free| gpu_memory_of(&config, crowd(4, 64), free * GIGABYTE, 85 * GIGABYTE);
        assert_eq!(gpu(80).verdict, Verdict::Ok, "{}", gpu(80).said);
        let short = gpu(24);
        assert_eq!(short.verdict, Verdict::Note, "it is an estimate");
        for part in ["no GPU has confirmed", "24.00 GB of 85.00 GB are free", "set batch.micro="] {
            assert!(short.said.contains(part), "{}", short.said);
        }
        assert!(gpu(1).said.contains("take GPUs with more memory"));
    }

    #[test]
    fn a_gpu_that_does_not_answer_is_no_problem() {
        let findings = memory(&arinar_b(), crowd(1, 1), Device::Cuda(1 << 10));
        let [gpu, host] = findings.as_slice() else { panic!("{findings:?}") };
        assert_eq!((gpu.what.as_str(), gpu.verdict, host.what.as_str()), (GPU_MEMORY, Verdict::Note, "memory"));
        let findings = memory(&arinar_b(), crowd(1, 1), Device::Cpu);
        assert!(findings.len() == 1 && findings[0].what == "memory", "{findings:?}");
    }

    #[test]
    fn a_container_with_little_shared_memory() {
        assert_eq!(shared_memory_of(64 << 20, 4, true).verdict, Verdict::Problem);
        assert_eq!(shared_memory_of(64 << 20, 4, false).verdict, Verdict::Ok);
        assert_eq!(shared_memory_of(64 << 20, 16, false).verdict, Verdict::Problem);
        assert_eq!(shared_memory(1, true), None);
    }

    #[test]
    fn more_files_than_any_limit() {
        assert_eq!(open_files(10).verdict, Verdict::Ok);
    }
}
