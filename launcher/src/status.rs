//! How the run does, for people, for /status and for /metrics.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use arinar_protocol::Phase;
use serde::Serialize;

use crate::{
    goodput::TimeSplit,
    ranks::{Ranks, StepTimes},
};

/// Why a job was started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A rank or mpirun ended.
    Crash,
    /// Nothing moved.
    Hang,
    /// A machine is gone.
    HostLost,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Crash, Self::Hang, Self::HostLost];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::HostLost => "host_lost",
        }
    }
}

/// What the launcher is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Ranks start.
    #[default]
    Starting,
    /// They train.
    Running,
    /// They were asked to end.
    Ending,
    /// The job will be started again.
    Waiting,
}

/// One rank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RankStatus {
    /// Its rank.
    pub rank: usize,
    /// Its machine; empty before it has reported.
    pub host: String,
    /// Its process; 0 before it has reported.
    pub pid: u32,
    /// What it is doing.
    pub phase: Phase,
    /// Steps it has trained.
    pub step: u64,
    /// Seconds since it reported.
    pub heartbeat_age_seconds: f64,
    /// Physical memory it holds.
    pub resident_bytes: u64,
    /// Seconds that it computed or waited for data, since this start.
    pub busy_seconds: f64,
}

/// The run at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// `run.name`.
    pub run: String,
    /// What the launcher is doing.
    pub state: State,
    /// Which start of the job this is.
    pub attempt: u32,
    /// Restarts by cause.
    pub restarts: BTreeMap<&'static str, u64>,
    /// Steps trained.
    pub step: u64,
    /// Steps to train; 0 while that is not known.
    pub total_steps: u64,
    /// Step of the newest checkpoint.
    pub saved_step: u64,
    /// Loss of the newest step; none before the first, and where it is not finite.
    pub train_loss: Option<f64>,
    /// Of late.
    pub images_per_second: f64,
    /// Of late.
    pub step_seconds: f64,
    /// Until the last step.
    pub eta_seconds: f64,
    /// The share of the launcher's life in which ranks computed.
    pub goodput_ratio: f64,
    /// The launcher's life so far.
    pub wall_seconds: f64,
    /// Its parts.
    pub time_seconds: BTreeMap<&'static str, f64>,
    /// False while a rank cannot reach the run's remote store.
    pub store_reachable: bool,
    /// Bytes of checkpoints that still lack there.
    pub checkpoint_backlog_bytes: u64,
    /// Ranks of this start.
    pub ranks: usize,
    /// Ranks when all machines are there.
    pub full_ranks: usize,
    /// Each of them.
    pub per_rank: Vec<RankStatus>,
}

/// What outlives a start of the job.
#[derive(Clone, Debug)]
pub struct Record {
    /// The launcher's start.
    pub began: Instant,
    /// Restarts by cause.
    pub restarts: BTreeMap<Cause, u64>,
    /// How long steps take.
    pub steps: StepTimes,
    /// Where time went.
    pub split: TimeSplit,
    /// The first step that was trained under this launcher, less one.
    pub first_step: Option<u64>,
}

impl Record {
    /// At the launcher's start.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            restarts: Cause::ALL.map(|cause| (cause, 0)).into(),
            steps: StepTimes::default(),
            split: TimeSplit::default(),
            first_step: None,
        }
    }

    /// The launcher's life so far.
    pub fn life(&self) -> Duration {
        self.began.elapsed()
    }

    /// Puts the parts of a status that come from ranks and from the record into it.
    pub fn fill(&self, status: &mut Status, ranks: &Ranks) {
        status.restarts = self.restarts.iter().map(|(cause, count)| (cause.name(), *count)).collect();
        self.fill_time(status);
        let beats = || ranks.iter().map(|rank| &rank.beat);
        let newest = |number: fn(&arinar_protocol::Beat) -> u64| beats().map(number).max().unwrap_or(0);
        // While ranks start they do not know yet; what was known stays.
        if newest(|beat| beat.total_steps) > 0 {
            status.step = ranks.reached();
            status.total_steps = newest(|beat| beat.total_steps);
            status.saved_step = newest(|beat| beat.saved_step);
            if let Some(beat) = beats().find(|beat| beat.step_seconds > 0.0) {
                status.train_loss = beat.loss;
            }
        }
        status.store_reachable = !beats().any(|beat| beat.store_unreachable);
        status.checkpoint_backlog_bytes = newest(|beat| beat.checkpoint_backlog_bytes);
        let global_batch = newest(|beat| beat.global_batch) as f64;
        status.step_seconds = self.steps.mean().unwrap_or(0.0);
        status.images_per_second = if status.step_seconds > 0.0 { global_batch / status.step_seconds } else { 0.0 };
        status.eta_seconds = status.total_steps.saturating_sub(status.step) as f64 * status.step_seconds;
        status.ranks = ranks.world();
        let views = ranks.views(Instant::now());
        status.per_rank = views
            .into_iter()
            .zip(beats())
            .map(|(view, beat)| {
                let (host, pid) = view.place.unwrap_or_default();
                RankStatus {
                    rank: view.rank,
                    host,
                    pid,
                    phase: view.phase,
                    step: view.step,
                    heartbeat_age_seconds: view.silent.as_secs_f64(),
                    resident_bytes: view.resident_bytes,
                    busy_seconds: beat.seconds.compute + beat.seconds.data_wait,
                }
            })
            .collect();
    }

    /// Puts the times alone into a status.
    pub fn fill_time(&self, status: &mut Status) {
        let life = self.life();
        status.wall_seconds = life.as_secs_f64();
        status.goodput_ratio = self.split.goodput(life);
        status.time_seconds = self.split.seconds().parts().into_iter().collect();
        status.time_seconds.insert("down", self.split.down(life));
    }
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}

impl Status {
    /// The line at the bottom of a terminal.
    pub fn line(&self) -> String {
        let restarts: u64 = self.restarts.values().sum();
        let state = match self.state {
            State::Starting => "starting",
            State::Running => "training",
            State::Ending => "ending",
            State::Waiting => "waiting",
        };
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

    /// What is said at the end.
    pub fn summary(&self, first_step: Option<u64>) -> String {
        let restarts: Vec<String> = self
            .restarts
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| format!("{count} by {}", name.replace('_', " ")))
            .collect();
        let restarts =
            if restarts.is_empty() { "no restart".to_owned() } else { format!("restarts: {}", restarts.join(", ")) };
        let total = self.wall_seconds.max(1e-9);
        let order = ["compute", "all_reduce", "data_wait", "checkpoint", "start_up", "lost_work", "down"];
        let parts: Vec<String> = order
            .iter()
            .filter_map(|name| Some((name, self.time_seconds.get(name)?)))
            .map(|(name, seconds)| format!("{:.1}% {}", 100.0 * seconds / total, name.replace('_', " ")))
            .collect();
        let gained = self.step.saturating_sub(first_step.unwrap_or(self.step));
        let mut line = format!(
            "{} of wall time, {gained} steps (to {} of {}), {restarts}, goodput {:.1}%: {}",
            whole_seconds(self.wall_seconds),
            self.step,
            self.total_steps,
            100.0 * self.goodput_ratio,
            parts.join(", ")
        );
        if let Some((rank, excess)) = self.slowest() {
            line += &format!(
                "; slowest is rank {} ({}), {:.0}% busier than the mean",
                rank.rank,
                rank.host,
                100.0 * excess
            );
        }
        line
    }

    /// The rank that works longest, if by more than a twentieth above the mean.
    fn slowest(&self) -> Option<(&RankStatus, f64)> {
        let mean = self.per_rank.iter().map(|rank| rank.busy_seconds).sum::<f64>() / self.per_rank.len() as f64;
        let slowest = self.per_rank.iter().max_by(|a, b| a.busy_seconds.total_cmp(&b.busy_seconds))?;
        let excess = slowest.busy_seconds / mean - 1.0;
        (mean > 1.0 && excess > 0.05).then_some((slowest, excess))
    }
}

/// `1h 2m 3s`.
pub fn whole_seconds(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds.clamp(0.0, 1e12) as u64)).to_string()
}
