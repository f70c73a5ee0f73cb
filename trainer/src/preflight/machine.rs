//! What the machine gives: cores, open files, shared memory, memory.

use indicatif::DecimalBytes;
use rustix::process::{Resource, getrlimit};

use super::finding::Finding;
use crate::{
    config::{BatchShare, TrainConfig},
    estimate::{EXACTNESS, Memory, largest_micro},
    memory,
};

/// Where Open MPI keeps the memory that ranks of a machine share.
const SHARED_MEMORY: &str = "/dev/shm";
/// Twice what Open MPI takes of it for each rank unless told otherwise (btl_vader_segment_size).
const SHARED_PER_RANK: u64 = 8 << 20;
/// What a rank with a GPU may need of it besides, for NCCL's buffers.
const SHARED_PER_GPU: u64 = 32 << 20;
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

/// Whether the ranks here find room for model, optimizer and activations.
pub fn memory(config: &TrainConfig, crowd: Crowd) -> Finding {
    match memory::available() {
        Some(free) => memory_of(config, crowd, free, memory::resident()),
        None => Finding::note("memory", "the system does not say how much is free"),
    }
}

/// With `free` bytes besides the `held` bytes that each process holds already.
fn memory_of(config: &TrainConfig, crowd: Crowd, free: u64, held: u64) -> Finding {
    let of_micro = |micro| {
        let batch = BatchShare { micro, accumulation: 1 };
        Memory::of_rank(config, crowd.world, batch, held)
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
    if more(memory) as f64 * (1.0 + EXACTNESS) > free as f64 {
        return Finding::note(
            "memory",
            format!("{told}, which is close: the estimate is exact to {:.0}%", 100.0 * EXACTNESS),
        );
    }
    if more(memory) + here * memory.snapshot > free {
        let slower = "without room for a checkpoint's copy, so training waits while one is written";
        return Finding::note("memory", format!("{told}, {slower}"));
    }
    Finding::ok("memory", told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::finding::Verdict;

    #[test]
    fn ranks_that_are_more_than_a_machine_holds() {
        let config = crate::config::parse(include_str!("../../../configs/arinar_b.yaml"), "arinar_b.yaml", &[]);
        let config = config.expect("a shipped configuration");
        let crowd = |here, micro| Crowd { world: 4, here, batch: BatchShare { micro, accumulation: 1 } };
        let gigabyte = 1_000_000_000;
        let finding = |here, micro, free| memory_of(&config, crowd(here, micro), free * gigabyte, gigabyte / 5);
        assert_eq!(finding(4, 2, 64).verdict, Verdict::Ok);
        let crowded = finding(4, 64, 32);
        assert_eq!(crowded.verdict, Verdict::Problem);
        assert!(crowded.said.contains("set batch.micro="), "{}", crowded.said);
        assert!(finding(4, 1, 4).said.contains("start fewer ranks"));
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
