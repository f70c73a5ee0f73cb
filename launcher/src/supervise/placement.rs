//! The placement of ranks on hosts.

use crate::{
    hosts::{self, Host, Unreachable},
    rank_count::RankCount,
    stop::Stop,
};

/// The hosts and the ranks of one start of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// Hosts with the number of slots used on each; empty for this host alone.
    pub(super) hosts: Vec<Host>,
    /// World size.
    pub(super) ranks: usize,
}

/// Constraints on the number of ranks.
#[derive(Clone, Copy, Debug)]
pub(super) struct RankLimits {
    /// World size when all hosts are available.
    pub(super) full_world: usize,
    /// `--min-ranks`.
    pub(super) min_ranks: Option<usize>,
    /// `batch.global`.
    pub(super) global_batch: usize,
}

impl Placement {
    /// Places all ranks.
    pub(super) fn full(hosts: &[Host], full_world: usize) -> Self {
        Self { hosts: hosts::allocate(hosts, full_world), ranks: full_world }
    }

    /// Places as many ranks as possible on the reachable hosts, after hosts were lost.
    ///
    /// # Errors
    /// Fewer ranks than required fit on the reachable hosts.
    pub(super) fn reduced(reachable: &[Host], lost: &[Unreachable], limits: RankLimits) -> Result<Self, Stop> {
        let free = hosts::total_slots(reachable).min(limits.full_world);
        let ranks = RankCount::Auto.choose(free, limits.global_batch)?;
        if free > 0 && ranks >= limits.min_ranks.unwrap_or(limits.full_world) {
            return Ok(Self { hosts: hosts::allocate(reachable, ranks), ranks });
        }
        let names: Vec<String> = lost.iter().map(|host| format!("{} ({})", host.name, host.error)).collect();
        let advice = match limits.min_ranks {
            None => "repair it, remove it from --hostfile, or allow fewer ranks with --min-ranks".to_owned(),
            Some(min) => format!("{ranks} ranks could start, fewer than --min-ranks {min}"),
        };
        Err(Stop::failure(format!("cannot reach {}; {advice}", names.join(", "))))
    }
}
