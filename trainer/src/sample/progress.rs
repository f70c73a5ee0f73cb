//! The progress of sampling: a bar on a terminal, otherwise a line at regular intervals.

use std::{
    cell::Cell,
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::reporter::write_error_line;

/// Time between two lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Reports the progress of sampling on standard error.
pub(crate) struct SamplingProgress {
    bar: ProgressBar,
    is_terminal: bool,
    last_line: Cell<Instant>,
}

impl SamplingProgress {
    /// Starts to report the progress towards `total` steps.
    pub(crate) fn start(total: u64) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = if is_terminal { ProgressBar::new(total) } else { ProgressBar::hidden() };
        bar.set_length(total);
        if let Ok(style) = ProgressStyle::with_template("sampling {wide_bar} {pos}/{len} steps  ETA {eta}") {
            bar.set_style(style);
        }
        Self { bar, is_terminal, last_line: Cell::new(Instant::now()) }
    }

    /// Counts a step.
    pub(crate) fn step(&self) {
        self.bar.inc(1);
        if !self.is_terminal && self.last_line.get().elapsed() >= LINE_INTERVAL {
            self.last_line.set(Instant::now());
            let total = self.bar.length().unwrap_or_default();
            let (position, left) = (self.bar.position(), HumanDuration(self.bar.eta()));
            write_error_line(&format!("sampling: {position}/{total} steps, {left} to go"));
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
