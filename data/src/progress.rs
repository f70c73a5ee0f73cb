//! How far it is: a bar on a terminal, a plain line every few seconds otherwise.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::text::duration_text;

const LINE_EVERY: Duration = Duration::from_secs(5);

/// Counts pieces of work and says when the rest will be done.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    total: u64,
    /// Done in an earlier run; they say nothing about speed.
    kept: u64,
    done: u64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
    silent: bool,
}

impl Progress {
    /// `what` is the unit, like "pictures". A silent one prints nothing.
    pub(crate) fn new(what: &'static str, total: u64, silent: bool) -> Self {
        let bar = (!silent && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {msg}");
            ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        Self { what, total, kept: 0, done: 0, started: now, last_line: now, bar, silent }
    }

    /// Counts work done just now.
    pub(crate) fn advance(&mut self, count: u64) {
        self.done += count;
        self.show();
    }

    /// Counts work that an earlier run did.
    pub(crate) fn keep(&mut self, count: u64) {
        self.kept += count;
        self.show();
    }

    /// Prints a line of its own.
    pub(crate) fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn show(&mut self) {
        let message = self.speed();
        if let Some(bar) = &self.bar {
            bar.set_message(message);
            bar.set_position(self.kept + self.done);
        } else if !self.silent && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let so_far = self.kept + self.done;
            eprintln!("{so_far}/{} {} ({}%), {message}", self.total, self.what, 100 * so_far / self.total.max(1));
        }
    }

    fn speed(&self) -> String {
        let speed = self.done as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        if self.done == 0 {
            return format!("{} kept from an earlier run", self.kept);
        }
        let left = self.total.saturating_sub(self.kept + self.done) as f64 / speed;
        format!("{speed:.1} {}/s, {} left", self.what, duration_text(Duration::from_secs_f64(left)))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
