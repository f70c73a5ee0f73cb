//! What the user sees while training: a bar on a terminal, plain lines elsewhere, JSON on request.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::config::{Every, LogConfig, LogFormat};

/// What there is to tell about a step.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Steps trained, from 1.
    pub step: u64,
    /// Epochs trained.
    pub epoch: f64,
    /// Mean loss of the global batch.
    pub loss: f64,
    /// Learning rate used.
    pub learning_rate: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Wall-clock time of the step.
    pub step_time: Duration,
}

/// Tells how training goes; a rank other than 0 has a silent one.
pub struct Progress {
    out: Out,
    every: Every,
    total: u64,
    global_batch: u64,
    last: Instant,
    last_step: Option<u64>,
    /// Seconds per step, averaged with more weight on the newest.
    pace: f64,
}

enum Out {
    Silent,
    Bar(ProgressBar),
    Lines,
    Json,
}

impl Progress {
    /// Nothing is ever printed.
    pub fn silent() -> Self {
        Self::new(Out::Silent, Every::Steps(1), 0, 0)
    }

    /// A bar if standard output is a terminal, else lines; JSON lines if so configured.
    pub fn start(log: &LogConfig, first_step: u64, total: u64, global_batch: u64) -> Self {
        let out = match log.format {
            LogFormat::Json => Out::Json,
            LogFormat::Text if is_terminal() => Out::Bar(bar(first_step, total)),
            LogFormat::Text => Out::Lines,
        };
        Self::new(out, log.every, total, global_batch)
    }

    fn new(out: Out, every: Every, total: u64, global_batch: u64) -> Self {
        let last = Instant::now();
        Self { out, every, total, global_batch, last, last_step: None, pace: 0.0 }
    }

    /// Tells about a step, or keeps silent if the last line is recent.
    pub fn step(&mut self, report: &Report) {
        let seconds = report.step_time.as_secs_f64();
        self.pace = if self.pace == 0.0 { seconds } else { 0.95 * self.pace + 0.05 * seconds };
        if let Out::Bar(bar) = &self.out {
            bar.set_position(report.step);
            bar.set_message(self.figures(report));
        } else if self.is_due(report.step) {
            self.last = Instant::now();
            self.last_step = Some(report.step);
            self.line(report);
        }
    }

    /// Tells something that is not about a step.
    pub fn message(&self, text: &str) {
        match &self.out {
            Out::Silent => {}
            Out::Bar(bar) => bar.println(text),
            Out::Lines => println!("{text}"),
            Out::Json => println!("{}", json!({ "message": text })),
        }
    }

    /// Leaves the bar where it is.
    pub fn finish(&self) {
        if let Out::Bar(bar) = &self.out {
            bar.abandon();
        }
    }

    /// The first and the last step always are.
    fn is_due(&self, step: u64) -> bool {
        let Some(last_step) = self.last_step else { return true };
        step >= self.total
            || match self.every {
                Every::Time(time) => self.last.elapsed() >= time,
                Every::Steps(steps) => step >= last_step + steps,
            }
    }

    fn line(&self, report: &Report) {
        match &self.out {
            Out::Lines => {
                println!("step {}/{}  {}", report.step, self.total, self.figures(report));
            }
            Out::Json => println!(
                "{}",
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
            ),
            Out::Silent | Out::Bar(_) => {}
        }
    }

    fn figures(&self, report: &Report) -> String {
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
        if self.pace > 0.0 { self.global_batch as f64 / self.pace } else { 0.0 }
    }

    fn remaining(&self, step: u64) -> Duration {
        let seconds = self.pace * self.total.saturating_sub(step) as f64;
        Duration::from_secs(seconds.min(1e12) as u64)
    }
}

/// The bar is drawn on standard error. Open MPI gives its ranks a pseudo-terminal for standard output
/// wherever that goes in the end, but a pipe for standard error.
fn is_terminal() -> bool {
    std::io::stderr().is_terminal() && std::io::stdout().is_terminal()
}

fn bar(first_step: u64, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_position(first_step);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
