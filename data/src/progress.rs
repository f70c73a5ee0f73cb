//! Progress of an operation.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::{reporter::Reporter, text::duration_text};

/// Interval between two lines of progress if standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Counts the pieces of work of an operation, and shows their number, speed and the remaining time.
///
/// ```
/// let reporter = arinar_data::Reporter::console();
/// let mut progress = arinar_data::Progress::start(&reporter, "pictures", 300);
/// progress.advance(100);
/// ```
#[derive(Debug)]
pub struct Progress {
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
    /// Starts to show the progress of an operation. `unit` is what it counts, such as "pictures".
    pub fn start(reporter: &Reporter, unit: &'static str, total: u64) -> Self {
        let bar = reporter.shows_bar().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {msg}");
            ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        Self { reporter: reporter.clone(), unit, total, kept: 0, done: 0, started: now, last_line: now, bar }
    }

    /// Counts pieces that have just been completed.
    pub fn advance(&mut self, count: u64) {
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
        } else if self.reporter.shows_progress_lines() && self.last_line.elapsed() >= LINE_INTERVAL {
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
