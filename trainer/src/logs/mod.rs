//! What a run leaves to look at: TensorBoard curves and progress, on rank 0 alone.

use std::path::Path;

use arinar_protocol::Seconds;

use crate::{
    checkpoint::UploadStatus,
    ledger::{self, LedgerFile, Stragglers},
    log_copy::LogCopy,
    progress::{Progress, Report},
    tensorboard::{EventWriter, TensorBoardError},
};
use arinar_collective::machine::memory;

/// Where the time went.
#[derive(Clone, Copy, Debug)]
pub struct Spent<'a> {
    /// That of a step.
    pub step: Seconds,
    /// That of the whole run.
    pub run: Seconds,
    /// How long each rank worked in the step, in seconds.
    pub busy: &'a [f32],
}

/// From which share above the mean on the slowest rank is worth a word.
const STRAGGLER_EXCESS: f64 = 0.05;

/// Curves and progress; silent on other ranks than 0.
pub struct Logs {
    progress: Progress,
    events: Option<EventWriter>,
    copy: Option<LogCopy>,
    ledger: Option<LedgerFile>,
    stragglers: Stragglers,
    global_batch: usize,
}

impl Logs {
    /// For ranks that tell nothing.
    pub fn silent() -> Self {
        Self::tell(Progress::silent(), None, 0)
    }

    /// For rank 0. `first_step` is the first that will be logged.
    ///
    /// # Errors
    /// When the event file cannot be made.
    pub fn start(
        progress: Progress,
        log_dir: &Path,
        first_step: u64,
        config: &str,
        global_batch: usize,
    ) -> Result<Self, TensorBoardError> {
        let mut events = EventWriter::create(log_dir, first_step)?;
        let indented: String = config.lines().map(|line| format!("    {line}\n")).collect();
        events.text(first_step, "config", &indented)?;
        Ok(Self::tell(progress, Some(events), global_batch))
    }

    fn tell(progress: Progress, events: Option<EventWriter>, global_batch: usize) -> Self {
        Self { progress, events, copy: None, ledger: None, stragglers: Stragglers::default(), global_batch }
    }

    /// From now on `ledger` notes how far the run is.
    pub fn noted_by(&mut self, ledger: LedgerFile) {
        self.ledger = Some(ledger);
    }

    /// From now on the event files are copied by `copy`, too.
    pub fn copied_by(&mut self, copy: LogCopy) {
        self.copy = Some(copy);
    }

    /// Logs a step; `upload` says how far a remote store is behind with the checkpoints.
    pub fn step(&mut self, report: &Report, spent: &Spent<'_>, upload: Option<UploadStatus>) {
        let seconds = report.step_time.as_secs_f64();
        let mut scalars = vec![
            ("train_loss", report.loss),
            ("lr", report.learning_rate),
            ("grad_norm", report.grad_norm),
            ("images_per_second", self.global_batch as f64 / seconds.max(1e-9)),
            ("step_time", seconds),
            ("compute_time", spent.step.compute),
            ("data_wait", spent.step.data_wait),
            ("all_reduce_time", spent.step.all_reduce),
            ("checkpoint_stall", spent.step.checkpoint),
            ("goodput", spent.run.goodput()),
            ("start_up_total", spent.run.start_up),
            ("lost_work_total", spent.run.lost_work),
            ("epoch", report.epoch),
            ("memory", memory::resident() as f64),
        ];
        self.stragglers.note(spent.busy);
        if let Some(slowest) = self.stragglers.slowest() {
            scalars.push(("slowest_rank", slowest.rank as f64));
            scalars.push(("slowest_rank_excess", slowest.excess));
        }
        if let Some(ledger) = &mut self.ledger {
            ledger.note(spent.run);
        }
        if let Some(upload) = upload {
            scalars.push(("checkpoint_backlog_bytes", upload.backlog_bytes as f64));
            scalars.push(("store_reachable", f64::from(u8::from(upload.reachable))));
        }
        let written = self.events.as_mut().map(|events| events.scalars(report.step, &scalars));
        if let Some(Err(error)) = written {
            self.give_up(&error);
        }
        if let Some(problem) = self.copy.as_ref().and_then(LogCopy::problem) {
            self.warn(&problem);
        }
        self.progress.step(report);
    }

    /// Tells something.
    pub fn message(&self, text: &str) {
        self.progress.message(text);
    }

    /// Tells something that is wrong but does not end the run.
    pub fn warn(&self, text: &str) {
        self.progress.message(&format!("warning: {text}"));
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) {
        if let Some(Err(error)) = self.events.as_mut().map(EventWriter::flush) {
            self.give_up(&error);
        }
    }

    /// Tells where the time of the run went, and who was slow.
    pub fn summary(&self, run: &Seconds) {
        self.message(&ledger::summary(run));
        if let Some(slowest) = self.stragglers.slowest().filter(|slowest| slowest.excess > STRAGGLER_EXCESS) {
            let (rank, excess) = (slowest.rank, 100.0 * slowest.excess);
            self.message(&format!("slowest rank: {rank}, which works {excess:.0}% longer than the mean of all ranks"));
        }
    }

    /// Ends the logs.
    pub fn finish(&mut self) {
        self.flush();
        if let Some(problem) = self.copy.take().and_then(LogCopy::finish) {
            self.warn(&problem);
        }
        self.progress.finish();
    }

    /// The curves are not worth the run: says it once and goes on without them.
    fn give_up(&mut self, error: &TensorBoardError) {
        self.events = None;
        self.warn(&format!("{error}; training goes on without TensorBoard"));
    }
}
