//! CPU affinity: the cores that a rank computes on.
//!
//! Open MPI binds each rank of a small job to a single core, which would leave most of a machine idle. Instead, the ranks
//! of a node share its cores evenly: rank i of n takes the i-th of n parts, in NUMA order, so that its memory is local to
//! its cores. A rank with a GPU takes a part of the cores that are local to its GPU.

use std::mem::size_of;

use super::topology;
use crate::cuda;

/// Binds this rank to its share of the node's cores and returns the number of threads it should use. If there are more
/// ranks than cores, nothing is bound and each rank uses one thread.
///
/// Under mpirun the cores to share are those of mpirun itself, because it binds even a single rank to one core.
pub fn bind_to_share(local_rank: usize, local_world_size: usize, under_mpirun: bool, on_gpus: bool) -> usize {
    let own = cores_of(0);
    let parent = i32::try_from(std::os::unix::process::parent_id()).map(cores_of).unwrap_or_default();
    let all = if under_mpirun && parent.len() > own.len() { parent } else { own };
    let all = by_node(all, &topology::numa_nodes());
    let near = if on_gpus { near_gpus(&all, local_world_size) } else { Vec::new() };
    let mine = share_near(&near, local_rank).unwrap_or_else(|| share(&all, local_rank, local_world_size));
    if !mine.is_empty() {
        bind(mine);
    }
    mine.len().max(1)
}

/// Returns the cores of one of `ranks` ranks; empty if there are fewer cores than ranks.
fn share(cores: &[usize], rank: usize, ranks: usize) -> &[usize] {
    if ranks == 0 || cores.len() < ranks || rank >= ranks {
        return &[];
    }
    &cores[cores.len() * rank / ranks..cores.len() * (rank + 1) / ranks]
}

/// Sorts cores by NUMA node.
fn by_node(mut cores: Vec<usize>, nodes: &[Vec<usize>]) -> Vec<usize> {
    cores.sort_by_key(|core| (nodes.iter().position(|node| node.contains(core)), *core));
    cores
}

/// Returns, for each rank of this node, those of `all` that are local to its GPU; empty if that is not known for every
/// rank.
fn near_gpus(all: &[usize], local_world_size: usize) -> Vec<Vec<usize>> {
    let near = |rank| {
        let mut cores = topology::cores_near(&cuda::bus_address(rank)?);
        cores.retain(|core| all.contains(core));
        (!cores.is_empty()).then_some(cores)
    };
    (0..local_world_size).map(near).collect::<Option<_>>().unwrap_or_default()
}

/// Returns this rank's share of the cores that are local to its GPU. Ranks whose GPUs have the same local cores share
/// them.
fn share_near(near: &[Vec<usize>], rank: usize) -> Option<&[usize]> {
    let mine = near.get(rank)?;
    let peers = near.iter().filter(|cores| *cores == mine).count();
    let before = near[..rank].iter().filter(|cores| *cores == mine).count();
    Some(share(mine, before, peers)).filter(|cores| !cores.is_empty())
}

/// Returns the cores that a process may run on, in ascending order; process 0 is this process. Empty if unknown.
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

/// Binds this process, and the threads it starts later, to these cores. Failure is harmless and ignored.
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
            let cores: Vec<usize> = (0..cores).collect();
            let shares: Vec<_> = (0..ranks).map(|rank| share(&cores, rank, ranks)).collect();
            assert_eq!(shares.concat(), cores);
            assert!(shares.iter().all(|share| !share.is_empty()));
        }
    }

    #[test]
    fn too_many_ranks_are_not_bound() {
        assert!(share(&[0, 1], 3, 4).is_empty());
    }

    #[test]
    fn a_share_stays_within_a_node() {
        // Hardware threads are often numbered round-robin over the sockets.
        let nodes = [vec![0, 2, 4, 6], vec![1, 3, 5, 7]];
        let all = by_node((0..8).collect(), &nodes);
        assert_eq!(share(&all, 0, 2), [0, 2, 4, 6]);
        assert_eq!(share(&all, 3, 4), [5, 7]);
        assert_eq!(by_node(vec![3, 1, 2], &[]), [1, 2, 3]);
    }

    #[test]
    fn ranks_take_cores_local_to_their_gpus() {
        let (left, right) = (vec![0, 1, 2, 3], vec![4, 5, 6, 7]);
        let near = [right.clone(), left.clone(), left, right];
        let shares: Vec<_> = (0..4).filter_map(|rank| share_near(&near, rank)).collect();
        assert_eq!(shares, [[4, 5], [0, 1], [2, 3], [6, 7]]);
        assert_eq!(share_near(&[], 0), None);
        assert_eq!(share_near(&[vec![0], vec![0]], 1), None);
    }

    #[test]
    fn this_process_has_a_core() {
        assert!(!cores_of(0).is_empty());
    }
}
