//! The output of this crate's operations: lines, warnings and progress.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::text::duration_text;

/// Interval between two lines of progress if standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// A handle to the program's output, passed to every operation that has something to report.
///
/// Output never fails: errors of writing, such as those of a closed pipe, are ignored.
#[derive(Clone, Debug)]
pub struct Reporter {
    shows_progress: bool,
}

impl Reporter {
    /// Creates a reporter that shows everything: a progress bar on a terminal, lines otherwise.
    pub fn console() -> Self {
        Self { shows_progress: true }
    }

    /// Creates a reporter that shows lines and warnings, but no progress. All ranks except rank 0 use it.
    pub fn without_progress() -> Self {
        Self { shows_progress: false }
    }

    /// Writes a line of results to standard output.
    pub fn print(&self, line: &str) {
        let _ = io::stdout().write_all(format!("{line}\n").as_bytes());
    }

    /// Writes a line to standard error.
    pub fn note(&self, line: &str) {
        let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
    }

    /// Writes a warning to standard error.
    pub fn warn(&self, text: &str) {
        self.note(&format!("arinar: warning: {text}"));
    }

    /// Starts to show the progress of an operation. `unit` is what it counts, such as "pictures".
    pub(crate) fn progress(&self, unit: &'static str, total: u64) -> Progress {
        let bar = (self.shows_progress && io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {msg}");
            ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        Progress { reporter: self.clone(), unit, total, kept: 0, done: 0, started: now, last_line: now, bar }
    }
}

/// Progress of an operation: counts its pieces of work and estimates the remaining time.
#[derive(Debug)]
pub(crate) struct Progress {
    reporter: Reporter,
    unit: &'static str,
    total: u64,
    /// Pieces that an earlier run completed. They do not count towards the speed.
    kept: u64,
    done: u64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Counts pieces that have just been completed.
    pub(crate) fn advance(&mut self, count: u64) {
        self.done += count;
        self.show();
    }

    /// Counts pieces that an earlier run completed.
    pub(crate) fn keep(&mut self, count: u64) {
        self.kept += count;
        self.show();
    }

    /// Writes a line to standard error without disturbing the progress bar.
    pub(crate) fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => self.reporter.note(line),
        }
    }

    /// Returns the time since the start of the operation.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn show(&mut self) {
        let message = self.speed();
        if let Some(bar) = &self.bar {
            bar.set_message(message);
            bar.set_position(self.kept + self.done);
        } else if self.reporter.shows_progress && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let (count, total) = (self.kept + self.done, self.total);
            let percent = 100 * count / total.max(1);
            self.reporter.note(&format!("{count}/{total} {} ({percent}%), {message}", self.unit));
        }
    }

    fn speed(&self) -> String {
        let speed = self.done as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        if self.done == 0 {
            return format!("{} kept from an earlier run", self.kept);
        }
        let remaining = self.total.saturating_sub(self.kept + self.done) as f64 / speed;
        format!("{speed:.1} {}/s, {} left", self.unit, duration_text(Duration::from_secs_f64(remaining)))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
