//! The status of the run, for the status line, /status and /metrics.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arinar_protocol::Phase;
use serde::Serialize;

/// The state of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RunState {
    /// Ranks are starting.
    #[default]
    Starting,
    /// Ranks are training.
    Running,
    /// Ranks are shutting down.
    Ending,
    /// No job is running; the next start is pending.
    Waiting,
}

impl RunState {
    /// Returns the name in the status line.
    fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "training",
            Self::Ending => "ending",
            Self::Waiting => "waiting",
        }
    }
}

/// The status of a rank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct RankStatus {
    /// The rank.
    pub(crate) rank: usize,
    /// Name of its host; empty before it has reported.
    pub(crate) host: String,
    /// Its process ID; 0 before it has reported.
    pub(crate) pid: u32,
    /// Its phase.
    pub(crate) phase: Phase,
    /// Number of steps it has trained.
    pub(crate) step: u64,
    /// Seconds since its last message.
    pub(crate) heartbeat_age_seconds: f64,
    /// Its resident memory in bytes.
    pub(crate) resident_bytes: u64,
    /// Seconds of computing or waiting for data in this start.
    pub(crate) busy_seconds: f64,
}

/// The status of the run at one moment. Its serialized form is the response to GET /status.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Status {
    /// `run.name`.
    pub(crate) run: String,
    /// State of the run.
    pub(crate) state: RunState,
    /// Number of this start of the job, from 1.
    pub(crate) attempt: u32,
    /// Number of restarts by cause.
    pub(crate) restarts: BTreeMap<&'static str, u64>,
    /// Number of steps trained.
    pub(crate) step: u64,
    /// Number of steps of the whole run; 0 while it is not known.
    pub(crate) total_steps: u64,
    /// Step of the newest checkpoint.
    pub(crate) saved_step: u64,
    /// Loss of the newest step; `None` before the first step and where the loss is not finite.
    pub(crate) train_loss: Option<f64>,
    /// Throughput over the most recent steps.
    pub(crate) images_per_second: f64,
    /// Mean duration of the most recent steps.
    pub(crate) step_seconds: f64,
    /// Estimated time until the last step.
    pub(crate) eta_seconds: f64,
    /// Share of the launcher's uptime in which ranks computed.
    pub(crate) goodput_ratio: f64,
    /// Uptime of the launcher.
    pub(crate) wall_seconds: f64,
    /// Uptime of the launcher by part.
    pub(crate) time_seconds: BTreeMap<&'static str, f64>,
    /// False while a rank cannot reach the remote store.
    pub(crate) store_reachable: bool,
    /// Bytes of checkpoints that are not yet uploaded to the remote store.
    pub(crate) checkpoint_backlog_bytes: u64,
    /// World size of this start.
    pub(crate) ranks: usize,
    /// World size when all hosts are available.
    pub(crate) full_ranks: usize,
    /// Status of each rank.
    pub(crate) per_rank: Vec<RankStatus>,
}

/// A status that the launcher updates and the HTTP server reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedStatus(Arc<Mutex<Status>>);

impl SharedStatus {
    /// Locks the status.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Status> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Status {
    /// Returns the status line of a terminal.
    pub(crate) fn line(&self) -> String {
        let restarts: u64 = self.restarts.values().sum();
        let state = self.state.label();
        let ranks = if self.ranks == self.full_ranks {
            format!("{} ranks", self.ranks)
        } else {
            format!("{} of {} ranks", self.ranks, self.full_ranks)
        };
        let eta =
            if self.eta_seconds > 0.0 { format!(" | ETA {}", whole_seconds(self.eta_seconds)) } else { String::new() };
        format!(
            "{} {state} | step {}/{} | {:.1} images/s{eta} | {ranks} | {restarts} restarts | goodput {:.1}%",
            self.run,
            self.step,
            self.total_steps,
            self.images_per_second,
            100.0 * self.goodput_ratio
        )
    }

    /// Returns the summary of the run. `first_step` is the step at which this launcher's first start resumed.
    pub(crate) fn summary(&self, first_step: Option<u64>) -> String {
        let gained = self.step.saturating_sub(first_step.unwrap_or(self.step));
        let mut line = format!(
            "{} of wall time, {gained} steps (to {} of {}), {}, goodput {:.1}%: {}",
            whole_seconds(self.wall_seconds),
            self.step,
            self.total_steps,
            self.restarts_by_cause(),
            100.0 * self.goodput_ratio,
            self.time_by_part()
        );
        if let Some((rank, excess)) = self.straggler() {
            line += &format!(
                "; slowest is rank {} ({}), {:.0}% busier than the mean",
                rank.rank,
                rank.host,
                100.0 * excess
            );
        }
        line
    }

    fn restarts_by_cause(&self) -> String {
        let counts = self.restarts.iter().filter(|(_, count)| **count > 0);
        let counts: Vec<String> =
            counts.map(|(name, count)| format!("{count} by {}", name.replace('_', " "))).collect();
        if counts.is_empty() { "no restart".to_owned() } else { format!("restarts: {}", counts.join(", ")) }
    }

    fn time_by_part(&self) -> String {
        const ORDER: [&str; 7] = ["compute", "all_reduce", "data_wait", "checkpoint", "start_up", "lost_work", "down"];
        let total = self.wall_seconds.max(1e-9);
        let known = ORDER.iter().filter_map(|name| Some((name, self.time_seconds.get(name)?)));
        let parts = known.map(|(name, seconds)| format!("{:.1}% {}", 100.0 * seconds / total, name.replace('_', " ")));
        parts.collect::<Vec<_>>().join(", ")
    }

    /// Returns the straggler, if there is one: the rank with the most busy time, and its excess over the mean if that is
    /// more than 5%.
    fn straggler(&self) -> Option<(&RankStatus, f64)> {
        let mean = self.per_rank.iter().map(|rank| rank.busy_seconds).sum::<f64>() / self.per_rank.len() as f64;
        let slowest = self.per_rank.iter().max_by(|a, b| a.busy_seconds.total_cmp(&b.busy_seconds))?;
        let excess = slowest.busy_seconds / mean - 1.0;
        (mean > 1.0 && excess > 0.05).then_some((slowest, excess))
    }
}

/// Formats a duration as in `1h 2m 3s`.
fn whole_seconds(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds.clamp(0.0, 1e12) as u64)).to_string()
}
