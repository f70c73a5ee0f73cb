//! The checks of the resources of a machine: cores, open files, and shared memory.

use arinar_collective::machine::open_files;
use indicatif::DecimalBytes;

use super::finding::Finding;

/// Where Open MPI keeps the memory that the ranks of a machine share.
const SHARED_MEMORY: &str = "/dev/shm";
/// Twice the shared memory that Open MPI uses per rank by default (btl_vader_segment_size).
const SHARED_PER_RANK: u64 = 8 << 20;
/// Additional shared memory per rank for NCCL's buffers if ranks compute on GPUs.
const SHARED_PER_GPU: u64 = 32 << 20;

/// Checks that there is a core for each thread of the ranks on this machine.
pub(crate) fn check_cores(ranks: usize, threads: usize) -> Finding {
    const SUBJECT: &str = "cores";
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let text = format!("{ranks} rank(s) with {threads} thread(s) each on {cores} core(s)");
    if cores > 0 && ranks * threads > cores {
        let fix = "the threads slow each other down; start fewer ranks, or lower train.threads";
        return Finding::note(SUBJECT, format!("{text}: {fix}"));
    }
    Finding::ok(SUBJECT, text)
}

/// Checks that a process may open as many files as it needs.
pub(crate) fn check_open_files() -> Finding {
    const SUBJECT: &str = "open files";
    match open_files::check_limit() {
        Ok(Some(limit)) => Finding::ok(SUBJECT, format!("{} needed, the limit is {limit}", open_files::NEEDED)),
        Ok(None) => Finding::ok(SUBJECT, "no limit"),
        Err(problem) => Finding::problem(SUBJECT, problem),
    }
}

/// Checks the space for the memory that the ranks on this machine share. A single rank shares none.
pub(crate) fn check_shared_memory(ranks: usize, on_gpus: bool) -> Option<Finding> {
    if ranks < 2 {
        return None;
    }
    let disk = rustix::fs::statvfs(SHARED_MEMORY).ok()?;
    Some(judge_shared_memory(disk.f_bavail * disk.f_frsize, ranks, on_gpus))
}

fn judge_shared_memory(free: u64, ranks: usize, on_gpus: bool) -> Finding {
    let needed = (SHARED_PER_RANK + if on_gpus { SHARED_PER_GPU } else { 0 }) * ranks as u64;
    let text = format!("{} free, {} needed", DecimalBytes(free), DecimalBytes(needed));
    if free < needed {
        let fix = "raise it (--shm-size of a container); otherwise ranks end with SIGBUS";
        return Finding::problem(SHARED_MEMORY, format!("{text}; {fix}"));
    }
    Finding::ok(SHARED_MEMORY, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planning::check::finding::Verdict;

    #[test]
    fn a_container_with_little_shared_memory_is_a_problem() {
        assert_eq!(judge_shared_memory(64 << 20, 4, true).verdict, Verdict::Problem);
        assert_eq!(judge_shared_memory(64 << 20, 4, false).verdict, Verdict::Ok);
        assert_eq!(judge_shared_memory(64 << 20, 16, false).verdict, Verdict::Problem);
        assert_eq!(check_shared_memory(1, true), None);
    }
}
