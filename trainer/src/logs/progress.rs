//! Training progress: a bar on a terminal, otherwise a line at regular intervals.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use arinar_data::Reporter;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::config::Every;

/// The figures of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepReport {
    /// Steps trained, counted from 1.
    pub step: u64,
    /// Epochs trained.
    pub epoch: f64,
    /// Mean loss of the global batch.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Steps of the whole run that were skipped because the loss or gradient was not finite.
    pub skipped_steps: u64,
    /// Wall-clock time of the step.
    pub step_time: Duration,
}

/// Reports the progress of training.
pub(crate) struct TrainingProgress {
    reporter: Reporter,
    /// A progress bar on a terminal, with messages above it.
    bar: Option<ProgressBar>,
    interval: Every,
    total: u64,
    global_batch: u64,
    last: Instant,
    last_step: Option<u64>,
    /// Exponential moving average of the seconds per step.
    seconds_per_step: f64,
}

impl TrainingProgress {
    /// Creates a progress that reports nothing.
    pub(crate) fn silent() -> Self {
        Self::start(Reporter::silent(), Every::Steps(1), 0, 0, 0)
    }

    /// Reports progress from `first_step` to `total` steps. Without a bar, a line is written once per `interval`.
    pub(crate) fn start(reporter: Reporter, interval: Every, first_step: u64, total: u64, global_batch: u64) -> Self {
        // Lines are written if standard output is redirected to a file.
        let shows_bar = reporter.shows_bar() && std::io::stdout().is_terminal();
        let bar = shows_bar.then(|| bar(first_step, total));
        let last = Instant::now();
        Self { reporter, bar, interval, total, global_batch, last, last_step: None, seconds_per_step: 0.0 }
    }

    /// Reports a step, unless another one was reported within the interval.
    pub(crate) fn step(&mut self, report: &StepReport) {
        let seconds = report.step_time.as_secs_f64();
        let average = self.seconds_per_step;
        self.seconds_per_step = if average == 0.0 { seconds } else { 0.95 * average + 0.05 * seconds };
        if let Some(bar) = &self.bar {
            bar.set_position(report.step);
            bar.set_message(self.figures(report));
        } else if self.is_due(report.step) {
            self.last = Instant::now();
            self.last_step = Some(report.step);
            let text = format!("step {}/{}  {}", report.step, self.total, self.figures(report));
            self.reporter.record(&text, || self.json(report));
        }
    }

    /// Reports a message.
    pub(crate) fn message(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.reporter.print(text)),
            None => self.reporter.print(text),
        }
    }

    /// Leaves the bar as it is.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }

    /// The first and the last step are always due.
    fn is_due(&self, step: u64) -> bool {
        let Some(last_step) = self.last_step else { return true };
        step >= self.total
            || match self.interval {
                Every::Time(time) => self.last.elapsed() >= time,
                Every::Steps(steps) => step >= last_step + steps,
            }
    }

    fn json(&self, report: &StepReport) -> Value {
        json!({
            "step": report.step,
            "total_steps": self.total,
            "epoch": report.epoch,
            "train_loss": report.loss,
            "lr": report.learning_rate,
            "grad_norm": report.grad_norm,
            "images_per_second": self.images_per_second(),
            "eta_seconds": self.remaining(report.step).as_secs(),
        })
    }

    fn figures(&self, report: &StepReport) -> String {
        format!(
            "epoch {:.2}  loss {:.4}  lr {:.2e}  grad_norm {:.3}  {:.1} images/s  ETA {}",
            report.epoch,
            report.loss,
            report.learning_rate,
            report.grad_norm,
            self.images_per_second(),
            humantime::format_duration(self.remaining(report.step))
        )
    }

    fn images_per_second(&self) -> f64 {
        if self.seconds_per_step > 0.0 { self.global_batch as f64 / self.seconds_per_step } else { 0.0 }
    }

    fn remaining(&self, step: u64) -> Duration {
        let seconds = self.seconds_per_step * self.total.saturating_sub(step) as f64;
        Duration::from_secs(seconds.min(1e12) as u64)
    }
}

fn bar(first: u64, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_position(first);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
