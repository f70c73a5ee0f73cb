//! The reporter: all output of a program for its user, as text or as JSON lines.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::config::LogFormat;

/// Writes messages and progress to standard output. A closed or full output is ignored: it must not end a run.
#[derive(Debug)]
pub struct Reporter(Output);

#[derive(Debug)]
enum Output {
    Silent,
    Text,
    Json,
    /// A progress bar on a terminal, with messages above it.
    Bar(ProgressBar),
}

impl Reporter {
    /// Creates a reporter that writes nothing, for ranks other than 0.
    pub fn silent() -> Self {
        Self(Output::Silent)
    }

    /// Creates a reporter that writes one line per message.
    pub fn new(format: LogFormat) -> Self {
        Self(match format {
            LogFormat::Text => Output::Text,
            LogFormat::Json => Output::Json,
        })
    }

    /// Shows progress from `first` to `total` as a bar from now on, if the output is text on a terminal.
    pub fn with_bar(self, first: u64, total: u64) -> Self {
        match self.0 {
            Output::Text if is_terminal() => Self(Output::Bar(bar(first, total))),
            other => Self(other),
        }
    }

    /// Returns the progress bar, if there is one.
    pub(crate) fn bar(&self) -> Option<&ProgressBar> {
        match &self.0 {
            Output::Bar(bar) => Some(bar),
            _ => None,
        }
    }

    /// Writes a message.
    pub fn message(&self, text: &str) {
        self.record(text, || json!({ "message": text }));
    }

    /// Writes a record in the format of the output: `text`, or the JSON value.
    pub fn record(&self, text: &str, value: impl FnOnce() -> Value) {
        match &self.0 {
            Output::Silent => {}
            Output::Bar(bar) => bar.println(text),
            Output::Text => write_line(text),
            Output::Json => write_line(&value().to_string()),
        }
    }
}

/// Writes a line to standard output. Errors are ignored.
pub fn write_line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Writes a line to standard error. Errors are ignored.
pub fn write_error_line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Returns true if a bar can be drawn, which is on standard error. Open MPI always gives its ranks a pseudo-terminal for
/// standard output, but a pipe for standard error.
fn is_terminal() -> bool {
    std::io::stderr().is_terminal() && std::io::stdout().is_terminal()
}

fn bar(first: u64, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_position(first);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
