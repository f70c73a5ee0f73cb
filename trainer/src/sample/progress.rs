//! How far the sampling is: a bar on a terminal, a line now and then elsewhere.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::reporter::write_error_line;

/// Time between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Counts sampling steps and shows them.
pub struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
    last_line: Cell<Instant>,
}

impl Progress {
    /// Starts counting towards `total` steps.
    pub fn start(total: u64) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = if is_terminal { ProgressBar::new(total) } else { ProgressBar::hidden() };
        bar.set_length(total);
        if let Ok(style) = ProgressStyle::with_template("sampling {wide_bar} {pos}/{len} steps  ETA {eta}") {
            bar.set_style(style);
        }
        Self { bar, is_terminal, last_line: Cell::new(Instant::now()) }
    }

    /// One more step is done.
    pub fn step(&self) {
        self.bar.inc(1);
        if !self.is_terminal && self.last_line.get().elapsed() >= LINE_EVERY {
            self.last_line.set(Instant::now());
            let total = self.bar.length().unwrap_or_default();
            let (position, left) = (self.bar.position(), HumanDuration(self.bar.eta()));
            write_error_line(&format!("sampling: {position}/{total} steps, {left} to go"));
        }
    }

    /// All steps are done.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
