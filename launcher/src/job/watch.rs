//! The watch over a running job.

use std::{
    process::ExitStatus,
    time::{Duration, Instant},
};

use arinar_protocol::exit_code;
use rustix::process::Signal;
use tokio::process::Child;

use super::{
    context::JobContext,
    outcome::{ShutdownRequest, outcome},
    shutdown::{MPIRUN_GRACE, Shutdown},
};
use crate::{
    exit_evidence::ExitEvidence,
    hang::{self, Limits},
    hang_report,
    mpi_cleanup::MpiSession,
    output::Level,
    policy::Outcome,
    processes,
    rank_message::{IncomingMessage, RankMessage},
    ranks::{RankEvent, Ranks},
    shutdown_signals::ShutdownSignal,
    status::RunState,
};

/// Interval between two checks of the ranks.
const CHECK_EVERY: Duration = Duration::from_millis(250);
/// If two checks are further apart than this, the launcher itself was stopped.
const MAX_CHECK_GAP: Duration = Duration::from_secs(3);
/// Maximum time to read the remaining output and messages after the end of mpirun.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A running job.
pub(super) struct Job<'a, 'b> {
    pub(super) context: &'a mut JobContext<'b>,
    /// Number of this start of the job.
    pub(super) attempt: u32,
    /// Process ID of mpirun.
    pub(super) pid: u32,
    pub(super) session: MpiSession,
    pub(super) ranks: Ranks,
    pub(super) shutdown: Shutdown,
    /// True once a SIGINT has arrived.
    pub(super) interrupted: bool,
    pub(super) request: ShutdownRequest,
    /// The reason of the hang, once one was detected.
    pub(super) hang: Option<String>,
    /// The first rank that died without a farewell.
    pub(super) lost: Option<usize>,
    pub(super) last_check: Instant,
}

impl<'a, 'b> Job<'a, 'b> {
    /// Creates start number `attempt` of a job of `world` ranks under the mpirun with process ID `pid`.
    pub(super) fn new(context: &'a mut JobContext<'b>, attempt: u32, pid: u32, world: usize) -> Self {
        Self {
            attempt,
            pid,
            session: MpiSession::new(pid, context.session_record.to_path_buf()),
            ranks: Ranks::new(world, Instant::now()),
            shutdown: Shutdown::None,
            interrupted: false,
            request: ShutdownRequest { requested: false, overdue: false },
            hang: None,
            lost: None,
            last_check: Instant::now(),
            context,
        }
    }
}

impl Job<'_, '_> {
    /// Watches the job until mpirun ends. Returns its exit status.
    pub(super) async fn watch(&mut self, child: &mut Child) -> Option<ExitStatus> {
        let mut interval = tokio::time::interval(CHECK_EVERY);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                status = child.wait() => return status.ok(),
                Some(message) = self.context.messages.recv() => self.handle_message(message),
                signal = self.context.signals.next() => self.handle_signal(signal),
                _ = interval.tick() => {
                    self.check();
                    if self.escalate() {
                        return child.wait().await.ok();
                    }
                }
            }
        }
    }

    /// Handles the messages that ranks sent before they ended.
    pub(super) async fn drain_messages(&mut self) {
        // A rank that still sends messages afterwards runs on another host. It will be disconnected.
        let deadline = tokio::time::Instant::now() + DRAIN_TIMEOUT;
        while self.ranks.iter().any(|rank| rank.hello.is_some() && !rank.has_ended()) {
            match tokio::time::timeout_at(deadline, self.context.messages.recv()).await {
                Ok(Some(message)) => self.handle_message(message),
                _ => break,
            }
        }
    }

    /// Removes the files that mpirun may have left.
    pub(super) fn remove_files(&self) {
        self.session.remove();
    }

    fn log(&self, level: Level, text: impl Into<String>) {
        self.context.output.log(level, text);
    }

    /// Handles a message of a rank. Messages of other starts are ignored.
    pub(super) fn handle_message(&mut self, incoming: IncomingMessage) {
        let IncomingMessage { attempt, rank, message } = incoming;
        if attempt != self.attempt {
            return;
        }
        self.record_message(rank, &message);
        let event = self.ranks.update(rank, message, Instant::now());
        if let Some(event) = event {
            self.handle_event(event);
        }
        if self.ranks.all_ended() {
            // Only mpirun's own exit remains, which may hang, too.
            self.begin_grace();
        }
    }

    fn record_message(&mut self, rank: usize, message: &RankMessage) {
        match message {
            RankMessage::Hello(hello) if is_this_host(&hello.host) => self.session.add_rank(hello.pid),
            RankMessage::Beat(beat) if rank == 0 => {
                self.context.history.time.update(beat);
                self.context.history.steps.add(beat);
            }
            _ => {}
        }
    }

    fn handle_event(&mut self, event: RankEvent) {
        match event {
            RankEvent::AllConnected => {
                let count = self.ranks.world();
                self.log(Level::Info, format!("all {count} ranks have reported"));
                if self.request.requested {
                    // The request may have arrived before there was a rank to forward it to.
                    processes::signal(self.pid, Signal::USR1);
                }
            }
            RankEvent::Lost(rank) => {
                self.lost = Some(rank);
                if self.shutdown == Shutdown::None {
                    let rank = self.ranks.describe(rank);
                    self.log(Level::Warning, format!("{rank} is gone: its connection ended without a farewell"));
                }
                self.begin_grace();
            }
            // mpirun now ends the other ranks. The reason is reported at the end.
            RankEvent::Exiting(code) if code != exit_code::DONE => self.begin_grace(),
            RankEvent::Exiting(_) => {}
        }
    }

    /// Starts the grace period, unless the job is shutting down already.
    fn begin_grace(&mut self) {
        if self.shutdown == Shutdown::None {
            self.shutdown = Shutdown::Grace(Instant::now() + self.context.arguments.grace);
        }
    }

    /// Handles a shutdown signal to the launcher.
    pub(super) fn handle_signal(&mut self, signal: ShutdownSignal) {
        let is_second_interrupt = signal == ShutdownSignal::Int && self.interrupted;
        self.interrupted |= signal == ShutdownSignal::Int;
        if self.shutdown.is_forced() {
            // The job is being killed already. The request only prevents a restart.
        } else if is_second_interrupt {
            self.log(Level::Warning, "a second SIGINT: killing the job");
            self.request.overdue = true;
            self.terminate();
        } else {
            // mpirun forwards SIGUSR1 to all ranks on all hosts, but turns SIGTERM into SIGKILL. Ranks ignore repetitions.
            processes::signal(self.pid, Signal::USR1);
            if !self.request.requested {
                let grace = self.context.arguments.grace;
                let time = humantime::format_duration(grace);
                self.log(Level::Info, format!("{signal}: the job saves a checkpoint and exits within {time}"));
                self.shutdown = Shutdown::Grace(Instant::now() + grace);
            }
        }
        self.request.requested = true;
    }

    /// Makes mpirun kill all ranks.
    fn terminate(&mut self) {
        if !self.shutdown.is_forced() {
            processes::signal(self.pid, Signal::TERM);
            self.shutdown = Shutdown::Terminating(Instant::now() + MPIRUN_GRACE);
        }
    }

    /// Proceeds to the next stage of the shutdown when its time has come. Returns true once mpirun has been killed.
    pub(super) fn escalate(&mut self) -> bool {
        if self.shutdown.is_due(Instant::now()) {
            if self.shutdown.is_forced() {
                processes::signal(self.pid, Signal::KILL);
                self.shutdown = Shutdown::Killed;
            } else {
                self.request.overdue = true;
                let time = humantime::format_duration(self.context.arguments.grace);
                self.log(Level::Warning, format!("the job has not ended within {time}; killing it"));
                self.terminate();
            }
        }
        self.shutdown == Shutdown::Killed
    }

    /// Checks all ranks and publishes the status.
    pub(super) fn check(&mut self) {
        let now = Instant::now();
        let gap = now - self.last_check;
        if gap > MAX_CHECK_GAP {
            self.ranks.exclude_pause(gap, now);
        }
        self.last_check = now;
        if self.shutdown == Shutdown::None {
            self.check_for_hang(now);
        }
        self.publish();
    }

    /// Kills the job if it hangs.
    pub(super) fn check_for_hang(&mut self, now: Instant) {
        let views = self.ranks.views(now);
        if let Some(hang) = hang::detect(&views, &self.limits()) {
            self.log(Level::Warning, hang_report::report(&hang, &views));
            self.hang = Some(hang_report::reason(&hang, &views));
            self.terminate();
        }
    }

    fn limits(&self) -> Limits {
        let arguments = self.context.arguments;
        // The first step of a start may have to download shards, so the median does not apply to it.
        let median = self.context.history.steps.median().filter(|_| self.ranks.have_stepped());
        let median = median.and_then(|secs| Duration::try_from_secs_f64(secs).ok());
        let outside_step = arguments.start_up_limit;
        Limits {
            step: Limits::of_step(median, arguments.hang_factor, arguments.hang_floor, outside_step),
            data: self.context.store_patience.mul_f64(Limits::STORE_MARGIN),
            outside_step,
            silence: arguments.silence_limit,
        }
    }

    fn publish(&self) {
        let mut status = self.context.status.lock();
        status.state = match self.shutdown {
            Shutdown::None if self.ranks.have_stepped() => RunState::Running,
            Shutdown::None => RunState::Starting,
            _ => RunState::Ending,
        };
        self.context.history.update_status(&mut status, &self.ranks);
        self.context.output.set_status(status.line());
    }

    /// Determines the outcome after the end of mpirun, and whether the job hung. Adds the job to the history.
    pub(super) fn finish(self, status: Option<ExitStatus>, mpirun_lines: &[String]) -> (Outcome, bool) {
        self.publish();
        let hang = self.hang.as_deref();
        let evidence = ExitEvidence { hang, ranks: &self.ranks, lost: self.lost, status, mpirun_lines };
        let outcome = outcome(&evidence, self.request);
        let history = &mut *self.context.history;
        history.time.end_start();
        if outcome.reached > 0 {
            history.first_step.get_or_insert(outcome.resumed);
        }
        (outcome, self.hang.is_some())
    }
}

fn is_this_host(name: &str) -> bool {
    *name == *rustix::system::uname().nodename().to_string_lossy()
}
