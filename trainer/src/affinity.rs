//! Which cores a rank computes on.
//!
//! Open MPI binds each rank of a small job to a single core, which would leave most of a machine
//! idle. The ranks of one machine share its cores evenly instead: rank i of n takes the i-th nth.

use std::mem::size_of;

/// Gives this rank its share of the machine's cores and returns how many threads it should use.
/// With more ranks than cores nothing is bound and each rank gets one thread.
///
/// Under mpirun the cores to share are mpirun's: it binds even a single rank to one core, but not itself.
pub fn take_share(local_rank: usize, local_ranks: usize, under_mpirun: bool) -> usize {
    let own = cores_of(0);
    let parent = i32::try_from(std::os::unix::process::parent_id()).map(cores_of).unwrap_or_default();
    let all = if under_mpirun && parent.len() > own.len() { parent } else { own };
    let (start, end) = share(all.len(), local_rank, local_ranks);
    if end > start {
        bind(&all[start..end]);
    }
    (end - start).max(1)
}

/// The half-open range of core indices of one rank; empty when there are fewer cores than ranks.
fn share(cores: usize, local_rank: usize, local_ranks: usize) -> (usize, usize) {
    if local_ranks == 0 || cores < local_ranks || local_rank >= local_ranks {
        return (0, 0);
    }
    (cores * local_rank / local_ranks, cores * (local_rank + 1) / local_ranks)
}

/// The cores a process may run on, in order; 0 means this one. Empty if the system does not say.
fn cores_of(process: i32) -> Vec<usize> {
    // SAFETY: cpu_set_t is a plain bit array, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is as large as the size passed and lives through the call.
    let failed = unsafe { libc::sched_getaffinity(process, size_of::<libc::cpu_set_t>(), &mut set) };
    if failed != 0 {
        return Vec::new();
    }
    (0..libc::CPU_SETSIZE as usize)
        // SAFETY: the index is below the number of bits of the set.
        .filter(|&core| unsafe { libc::CPU_ISSET(core, &set) })
        .collect()
}

/// Binds this process, and the threads it starts later, to these cores; a refusal is harmless.
fn bind(cores: &[usize]) {
    // SAFETY: as in `cores_of`.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &core in cores {
        // SAFETY: the indices came from a set of this size.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    // SAFETY: `set` is as large as the size passed and lives through the call.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_disjoint_and_cover_all_cores() {
        for (cores, ranks) in [(1, 1), (2, 2), (7, 3), (64, 8)] {
            let shares: Vec<_> = (0..ranks).map(|rank| share(cores, rank, ranks)).collect();
            assert_eq!(shares[0].0, 0);
            assert_eq!(shares[ranks - 1].1, cores);
            assert!(shares.windows(2).all(|pair| pair[0].1 == pair[1].0));
            assert!(shares.iter().all(|(start, end)| end > start));
        }
    }

    #[test]
    fn too_many_ranks_are_not_bound() {
        assert_eq!(share(2, 3, 4), (0, 0));
    }

    #[test]
    fn this_process_has_a_core() {
        assert!(!cores_of(0).is_empty());
    }
}
