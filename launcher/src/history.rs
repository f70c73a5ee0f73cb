//! The part of the launcher's state that outlives a start of the job.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use arinar_protocol::Beat;

use crate::{
    goodput::TimeAccounting,
    hang::RankView,
    ranks::{Rank, Ranks},
    status::{RankStatus, Status},
    step_times::StepTimes,
};

/// Why a job was restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RestartCause {
    /// A rank or mpirun exited.
    Crash,
    /// The job made no progress.
    Hang,
    /// A host was lost.
    HostLost,
}

impl RestartCause {
    const ALL: [Self; 3] = [Self::Crash, Self::Hang, Self::HostLost];

    /// Returns the name in metrics.
    fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::HostLost => "host_lost",
        }
    }
}

/// The history of the run under this launcher.
#[derive(Clone, Debug)]
pub(crate) struct RunHistory {
    began: Instant,
    restarts: BTreeMap<RestartCause, u64>,
    /// Durations of the most recent steps.
    pub(crate) steps: StepTimes,
    /// Time spent, by part.
    pub(crate) time: TimeAccounting,
    /// Step at which the first start of this launcher resumed.
    pub(crate) first_step: Option<u64>,
}

impl RunHistory {
    /// Creates an empty history, which begins now.
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            restarts: RestartCause::ALL.map(|cause| (cause, 0)).into(),
            steps: StepTimes::default(),
            time: TimeAccounting::default(),
            first_step: None,
        }
    }

    /// Counts a restart.
    pub(crate) fn add_restart(&mut self, cause: RestartCause) {
        *self.restarts.entry(cause).or_default() += 1;
    }

    fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// Updates everything in a status that depends on the history and on the ranks.
    pub(crate) fn update_status(&self, status: &mut Status, ranks: &Ranks) {
        self.update_totals(status);
        let max = |number: fn(&Beat) -> u64| ranks.iter().map(|rank| number(&rank.beat)).max().unwrap_or(0);
        // While ranks start they do not know the total yet. The values of the previous start are kept until then.
        if max(|beat| beat.total_steps) > 0 {
            status.step = ranks.reached();
            status.total_steps = max(|beat| beat.total_steps);
            status.saved_step = max(|beat| beat.saved_step);
            if let Some(rank) = ranks.iter().find(|rank| rank.beat.step_seconds > 0.0) {
                status.train_loss = rank.beat.loss;
            }
        }
        status.store_reachable = !ranks.iter().any(|rank| rank.beat.store_unreachable);
        status.checkpoint_backlog_bytes = max(|beat| beat.checkpoint_backlog_bytes);
        let global_batch = max(|beat| beat.global_batch) as f64;
        status.step_seconds = self.steps.mean().unwrap_or(0.0);
        status.images_per_second = if status.step_seconds > 0.0 { global_batch / status.step_seconds } else { 0.0 };
        status.eta_seconds = status.total_steps.saturating_sub(status.step) as f64 * status.step_seconds;
        status.ranks = ranks.world();
        status.per_rank = rank_statuses(ranks);
    }

    /// Updates the restarts and times in a status.
    pub(crate) fn update_totals(&self, status: &mut Status) {
        status.restarts = self.restarts.iter().map(|(cause, count)| (cause.name(), *count)).collect();
        let uptime = self.uptime();
        status.wall_seconds = uptime.as_secs_f64();
        status.goodput_ratio = self.time.goodput(uptime);
        status.time_seconds = self.time.seconds().parts().into_iter().collect();
        status.time_seconds.insert("down", self.time.down(uptime));
    }
}

fn rank_statuses(ranks: &Ranks) -> Vec<RankStatus> {
    let views = ranks.views(Instant::now());
    let status = |(view, rank): (RankView, &Rank)| {
        let (host, pid) = view.process.unwrap_or_default();
        RankStatus {
            rank: view.rank,
            host,
            pid,
            phase: view.phase,
            step: view.step,
            heartbeat_age_seconds: view.since_message.as_secs_f64(),
            resident_bytes: view.resident_bytes,
            busy_seconds: rank.beat.seconds.compute + rank.beat.seconds.data_wait,
        }
    };
    views.into_iter().zip(ranks.iter()).map(status).collect()
}
