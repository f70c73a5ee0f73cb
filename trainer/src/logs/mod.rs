//! The logs of a run, written by rank 0: TensorBoard curves and progress messages.

mod event_upload;
mod progress;
mod tensorboard;

use std::path::Path;

use arinar_checkpoint::UploadStatus;
use arinar_collective::machine::memory;
use arinar_protocol::Seconds;

use crate::time_accounting::{self, Stragglers, TimeFile};

pub(crate) use event_upload::{EventUpload, UPLOAD_INTERVAL, newest_event_file};
pub(crate) use progress::{StepReport, TrainingProgress};
use tensorboard::{EventWriter, TensorBoardError};

/// The time spent in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepTime<'a> {
    /// Time spent in the step.
    pub step: Seconds,
    /// Time spent by the whole run.
    pub run: Seconds,
    /// How long each rank worked in the step, in seconds.
    pub busy: &'a [f32],
}

/// The slowest rank is reported if it works longer than the mean by this share.
const STRAGGLER_EXCESS: f64 = 0.05;

/// Curves and progress. Silent on ranks other than 0.
pub(crate) struct Logs {
    progress: TrainingProgress,
    events: Option<EventWriter>,
    upload: Option<EventUpload>,
    time_file: Option<TimeFile>,
    stragglers: Stragglers,
    global_batch: usize,
}

impl Logs {
    /// Creates logs that write nothing.
    pub(crate) fn silent() -> Self {
        Self::new(TrainingProgress::silent(), None, 0)
    }

    /// Starts the logs of rank 0. `first_step` is the first step that will be logged, `config` the configuration to be shown
    /// beside the curves, and `newest` the last event file in the store of a remote run.
    ///
    /// # Errors
    /// Returns an error if the event file cannot be created.
    pub(crate) fn start(
        progress: TrainingProgress,
        log_dir: &Path,
        first_step: u64,
        config: &str,
        global_batch: usize,
        newest: Option<&str>,
    ) -> Result<Self, TensorBoardError> {
        let mut events = EventWriter::create(log_dir, first_step, newest)?;
        let indented: String = config.lines().map(|line| format!("    {line}\n")).collect();
        events.text(first_step, "config", &indented)?;
        Ok(Self::new(progress, Some(events), global_batch))
    }

    fn new(progress: TrainingProgress, events: Option<EventWriter>, global_batch: usize) -> Self {
        Self { progress, events, upload: None, time_file: None, stragglers: Stragglers::default(), global_batch }
    }

    /// Records the time spent in `file` from now on.
    pub(crate) fn set_time_file(&mut self, file: TimeFile) {
        self.time_file = Some(file);
    }

    /// Uploads the event files from now on.
    pub(crate) fn set_upload(&mut self, upload: EventUpload) {
        self.upload = Some(upload);
    }

    /// Logs a step. `upload` is the upload status of the checkpoints of a run in a remote store.
    pub(crate) fn step(&mut self, report: &StepReport, spent: &StepTime<'_>, upload: Option<UploadStatus>) {
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
            ("skipped_steps", report.skipped_steps as f64),
        ];
        self.stragglers.record(spent.busy);
        if let Some(slowest) = self.stragglers.slowest() {
            scalars.push(("slowest_rank", slowest.rank as f64));
            scalars.push(("slowest_rank_excess", slowest.excess));
        }
        if let Some(file) = &mut self.time_file {
            file.record(spent.run);
        }
        if let Some(upload) = upload {
            scalars.push(("checkpoint_backlog_bytes", upload.backlog_bytes as f64));
            scalars.push(("store_reachable", f64::from(u8::from(upload.reachable))));
        }
        let written = self.events.as_mut().map(|events| events.scalars(report.step, &scalars));
        if let Some(Err(error)) = written {
            self.disable_events(&error);
        }
        if let Some(problem) = self.upload.as_ref().and_then(EventUpload::problem) {
            self.warn(&problem);
        }
        self.progress.step(report);
    }

    /// Logs a message.
    pub(crate) fn message(&self, text: &str) {
        self.progress.message(text);
    }

    /// Logs a problem that does not end the run.
    pub(crate) fn warn(&self, text: &str) {
        self.progress.message(&format!("warning: {text}"));
    }

    /// Logs that a step is skipped: as a warning, and beside the curves.
    pub(crate) fn skipped_step(&mut self, step: u64, text: &str) {
        self.warn(text);
        if let Some(Err(error)) = self.events.as_mut().map(|events| events.text(step, "skipped_step", text)) {
            self.disable_events(&error);
        }
    }

    /// Flushes the event file.
    pub(crate) fn flush(&mut self) {
        if let Some(Err(error)) = self.events.as_mut().map(EventWriter::flush) {
            self.disable_events(&error);
        }
    }

    /// Logs how the time of the run was spent, and the slowest rank.
    pub(crate) fn summary(&self, run: &Seconds) {
        self.message(&time_accounting::summary(run));
        if let Some(slowest) = self.stragglers.slowest().filter(|slowest| slowest.excess > STRAGGLER_EXCESS) {
            let (rank, excess) = (slowest.rank, 100.0 * slowest.excess);
            self.message(&format!("slowest rank: {rank}, which works {excess:.0}% longer than the mean of all ranks"));
        }
    }

    /// Finishes the logs.
    pub(crate) fn finish(&mut self) {
        self.flush();
        if let Some(problem) = self.upload.take().and_then(EventUpload::finish) {
            self.warn(&problem);
        }
        self.progress.finish();
    }

    /// Continues without curves, because they are not worth ending the run.
    fn disable_events(&mut self, error: &TensorBoardError) {
        self.events = None;
        self.warn(&format!("{error}; training continues without TensorBoard"));
    }
}
