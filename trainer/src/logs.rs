//! What a run leaves to look at: TensorBoard curves and progress, on rank 0 alone.

use std::{path::Path, time::Duration};

use crate::{
    checkpoint::UploadStatus,
    log_copy::LogCopy,
    memory,
    progress::{Progress, Report},
    tensorboard::{EventWriter, TensorBoardError},
};

/// Where a step's time went.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Waiting for data.
    pub data_wait: Duration,
    /// Summing gradients and passing on updated weights.
    pub all_reduce: Duration,
    /// Handing a checkpoint to the thread that copies it, and waiting for the copy.
    pub checkpoint_stall: Duration,
}

/// Curves and progress; silent on other ranks than 0.
pub struct Logs {
    progress: Progress,
    events: Option<EventWriter>,
    copy: Option<LogCopy>,
    global_batch: usize,
}

impl Logs {
    /// For ranks that tell nothing.
    pub fn silent() -> Self {
        Self { progress: Progress::silent(), events: None, copy: None, global_batch: 0 }
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
        Ok(Self { progress, events: Some(events), copy: None, global_batch })
    }

    /// From now on the event files are copied by `copy`, too.
    pub fn copied_by(&mut self, copy: LogCopy) {
        self.copy = Some(copy);
    }

    /// Logs a step; `upload` says how far a remote store is behind with the checkpoints.
    pub fn step(&mut self, report: &Report, timing: &Timing, upload: Option<UploadStatus>) {
        let seconds = report.step_time.as_secs_f64();
        let mut scalars = vec![
            ("train_loss", report.loss),
            ("lr", report.learning_rate),
            ("grad_norm", report.grad_norm),
            ("images_per_second", self.global_batch as f64 / seconds.max(1e-9)),
            ("step_time", seconds),
            ("data_wait", timing.data_wait.as_secs_f64()),
            ("all_reduce_time", timing.all_reduce.as_secs_f64()),
            ("checkpoint_stall", timing.checkpoint_stall.as_secs_f64()),
            ("epoch", report.epoch),
            ("memory", memory::resident() as f64),
        ];
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
