//! The loop that starts the job until the run is done.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use arinar_protocol::{Launcher, environment, exit_code};
use tokio::sync::mpsc;

use super::{
    placement::Placement,
    settings::{Settings, variable_names},
};
use crate::{
    history::{RestartCause, RunHistory},
    hosts::{self, Unreachable},
    job::{self, JobContext},
    output::{Level, Output},
    policy::{Decision, Outcome, RestartPolicy},
    rank_message::IncomingMessage,
    server::Server,
    shutdown_signals::{ShutdownSignal, ShutdownSignals},
    status::{RunState, SharedStatus},
    stop::Stop,
};

/// Backoff before lost hosts are probed again. It doubles up to the maximum.
const INITIAL_PROBE_BACKOFF: Duration = Duration::from_secs(1);
const MAX_PROBE_BACKOFF: Duration = Duration::from_secs(60);

/// A run under this launcher.
pub(super) struct RunLoop {
    pub(super) settings: Settings,
    pub(super) output: Output,
    pub(super) server: Server,
    pub(super) messages: mpsc::Receiver<IncomingMessage>,
    pub(super) signals: ShutdownSignals,
    pub(super) status: SharedStatus,
    pub(super) history: RunHistory,
    pub(super) policy: RestartPolicy,
    /// Number of starts so far.
    pub(super) attempt: u32,
    /// Path of the file that records the running mpirun.
    pub(super) session_record: PathBuf,
}

impl RunLoop {
    /// Starts the job again and again until the run is done.
    ///
    /// # Errors
    /// A shutdown was requested, the policy gives up, or no job can be started.
    pub(super) async fn run(&mut self) -> Result<(), Stop> {
        let (mut cause, mut ranks) = (RestartCause::Crash, self.settings.full_world);
        loop {
            let placement = self.wait_for_hosts().await?;
            let lost_hosts = placement.ranks < ranks;
            ranks = placement.ranks;
            self.count_start(if lost_hosts { RestartCause::HostLost } else { cause });
            let (outcome, hung) = match self.start(&placement).await {
                Ok(ended) => ended,
                Err(stop) if self.attempt == 1 => return Err(stop),
                // An earlier start succeeded, so the cause may be temporary, such as a lack of memory or processes.
                Err(stop) => (failed_start(stop), false),
            };
            cause = if hung { RestartCause::Hang } else { RestartCause::Crash };
            match self.policy.decide(&outcome, rand::random()) {
                Decision::Done => return Ok(()),
                Decision::Stop(stop) => return Err(stop),
                Decision::Restart { backoff } => self.back_off(&outcome, backoff).await?,
            }
        }
    }

    /// Waits until enough hosts are reachable. Lost hosts are probed again for as long as a start may take, except before
    /// the first start, where a host name may be wrong.
    async fn wait_for_hosts(&mut self) -> Result<Placement, Stop> {
        let limit = self.settings.arguments.start_up_limit;
        let (began, mut backoff) = (Instant::now(), INITIAL_PROBE_BACKOFF);
        loop {
            let stop = match self.probe_hosts().await? {
                Ok(placement) => return Ok(placement),
                Err(stop) => stop,
            };
            if self.attempt == 0 || began.elapsed() >= limit {
                return Err(stop);
            }
            if backoff == INITIAL_PROBE_BACKOFF {
                let limit = humantime::format_duration(limit);
                self.output.log(Level::Warning, format!("{stop}; retrying for {limit} (--start-up-limit)"));
            }
            self.wait(backoff).await?;
            backoff = (2 * backoff).min(MAX_PROBE_BACKOFF);
        }
    }

    /// Probes the hosts and places the job on those that are reachable. The inner error means that too few are reachable,
    /// the outer one ends the launcher.
    async fn probe_hosts(&mut self) -> Result<Result<Placement, Stop>, Stop> {
        let hosts = &self.settings.hosts;
        if hosts.is_empty() {
            return Ok(Ok(self.settings.full_placement()));
        }
        let (reachable, lost) = tokio::select! {
            probed = hosts::probe(hosts) => probed?,
            signal = self.signals.next() => return Err(stopped_while_waiting(signal)),
        };
        let placement = self.settings.place(&reachable, &lost);
        if let Ok(placement) = &placement
            && !lost.is_empty()
        {
            self.log_lost_hosts(&lost, placement.ranks);
        }
        Ok(placement)
    }

    fn log_lost_hosts(&self, lost: &[Unreachable], ranks: usize) {
        let names: Vec<&str> = lost.iter().map(|host| host.name.as_str()).collect();
        let errors: Vec<&str> = lost.iter().map(|host| host.error.as_str()).collect();
        let (names, errors, full) = (names.join(", "), errors.join("; "), self.settings.full_world);
        let text = format!(
            "lost {names} ({errors}): continuing with {ranks} of {full} ranks, each with more samples per step"
        );
        self.output.log(Level::Warning, text);
    }

    /// Counts a start of the job, and a restart if it is not the first one.
    fn count_start(&mut self, cause: RestartCause) {
        if self.attempt > 0 {
            self.history.add_restart(cause);
        }
        self.attempt += 1;
    }

    /// Runs one start of the job until it ends. Returns its outcome, and whether it hung.
    async fn start(&mut self, placement: &Placement) -> Result<(Outcome, bool), Stop> {
        let launcher = self.launcher_info(placement);
        self.server.expect(&launcher.token, self.attempt, placement.ranks);
        {
            let mut status = self.status.lock();
            status.run.clone_from(&self.settings.config.name);
            (status.attempt, status.full_ranks) = (self.attempt, self.settings.full_world);
        }
        // mpirun reads the file while it starts.
        let hostfile = self.settings.hostfile(placement)?;
        let command = self.settings.command(placement, hostfile.as_ref().map(|file| file.path.as_str()));
        let header = format!("attempt {}: {}", self.attempt, command.shell_line(variable_names()));
        self.output.header(placement.ranks, &header).await;
        let arguments = command.arguments(variable_names());
        let mut context = JobContext {
            arguments: &self.settings.arguments,
            output: &self.output,
            messages: &mut self.messages,
            signals: &mut self.signals,
            history: &mut self.history,
            status: &self.status,
            store_patience: store_patience(),
            session_record: &self.session_record,
        };
        let mpirun = &self.settings.programs.mpirun;
        let ended = job::run(&mut context, mpirun, &arguments, &launcher, placement.ranks).await;
        self.server.disconnect_all();
        ended
    }

    /// Returns the description of this launcher for the ranks of the next start.
    fn launcher_info(&self, placement: &Placement) -> Launcher {
        Launcher {
            addresses: hosts::own_addresses(&placement.hosts, self.server.port),
            token: format!("{:032x}", rand::random::<u128>()),
            attempt: self.attempt,
            full_world: self.settings.full_world,
            silence_secs: self.settings.arguments.silence_limit.as_secs_f64(),
            grace_secs: self.settings.arguments.grace.as_secs_f64(),
        }
    }

    /// Reports a restart and waits for its backoff.
    async fn back_off(&mut self, outcome: &Outcome, backoff: Duration) -> Result<(), Stop> {
        let Outcome { reason, reached, .. } = outcome;
        let (restart, seconds) = (self.policy.restarts(), backoff.as_secs_f64());
        let text = format!(
            "{reason}; restart {restart} from the newest checkpoint in {seconds:.1} s (step {reached} was reached)"
        );
        self.output.log(Level::Warning, text);
        self.wait(backoff).await
    }

    /// Waits while no job is running.
    async fn wait(&mut self, time: Duration) -> Result<(), Stop> {
        {
            let mut status = self.status.lock();
            status.state = RunState::Waiting;
            self.history.update_totals(&mut status);
            self.output.set_status(status.line());
        }
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            signal = self.signals.next() => Err(stopped_while_waiting(signal)),
        }
    }

    /// Reports the summary of the run.
    pub(super) fn log_summary(&self) {
        let mut status = self.status.lock();
        self.history.update_totals(&mut status);
        if self.attempt > 0 {
            self.output.log(Level::Info, status.summary(self.history.first_step));
        }
    }
}

/// Returns the time for which ranks retry store operations. Ranks report an invalid value themselves.
fn store_patience() -> Duration {
    let default = environment::DEFAULT_STORE_PATIENCE_SECS;
    let text = std::env::var(environment::STORE_PATIENCE).ok();
    let seconds = text.and_then(|text| text.trim().parse().ok()).unwrap_or(default);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs_f64(default))
}

/// Returns the outcome of a start that failed before mpirun ran.
fn failed_start(stop: Stop) -> Outcome {
    let Stop { code, line: reason } = stop;
    Outcome { code, reason, resumed: 0, reached: 0, requested: false, deterministic: false }
}

fn stopped_while_waiting(signal: ShutdownSignal) -> Stop {
    Stop {
        code: exit_code::PREEMPTED,
        line: format!("{signal} while no job was running; start again to resume from the newest checkpoint"),
    }
}
