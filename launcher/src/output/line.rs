//! The lines of the output and their text.

use std::time::SystemTime;

use anstyle::{AnsiColor, Style};
use serde_json::json;

use crate::arguments::LogFormat;

/// A standard stream of a process, and of the launcher itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Severity of a message of the launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Information.
    Info,
    /// A problem that does not end the run.
    Warning,
    /// The error that ends the run.
    Error,
}

impl Level {
    /// Returns the name in JSON and in log files.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A line to display.
#[derive(Debug)]
pub(super) enum Line {
    /// A line of a rank.
    Rank {
        /// The rank.
        rank: usize,
        /// The stream it was written to.
        stream: Stream,
        /// The line.
        text: String,
    },
    /// A line of mpirun itself.
    Mpirun(String),
    /// A message of the launcher.
    Launcher(Level, String),
}

impl Line {
    /// Returns the stream to display the line on.
    pub(super) fn stream(&self) -> Stream {
        match self {
            Self::Rank { stream, .. } => *stream,
            Self::Mpirun(_) | Self::Launcher(..) => Stream::Stderr,
        }
    }

    /// Formats the line, with colors where the format is text.
    pub(super) fn format(self, format: LogFormat) -> String {
        match format {
            LogFormat::Text => self.text(),
            LogFormat::Json => self.json().to_string(),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Rank { rank, text, .. } => {
                let style = rank_style(rank);
                format!("{style}[{rank}]{style:#} {text}")
            }
            Self::Mpirun(text) => {
                let style = Style::new().dimmed();
                format!("{style}[mpirun] {text}{style:#}")
            }
            Self::Launcher(level, text) => {
                let (style, label) = match level {
                    Level::Info => (Style::new().bold(), ""),
                    Level::Warning => (AnsiColor::Yellow.on_default().bold(), " warning:"),
                    Level::Error => (AnsiColor::Red.on_default().bold(), " error:"),
                };
                format!("{style}arinar-launcher:{label}{style:#} {text}")
            }
        }
    }

    fn json(self) -> serde_json::Value {
        match self {
            Self::Rank { rank, stream, text } => {
                let mut line = json!({"time": now(), "source": "rank", "rank": rank, "stream": stream.name()});
                // With --log-format json, the trainer prints objects.
                match serde_json::from_str(&text) {
                    Ok(serde_json::Value::Object(record)) => line["record"] = record.into(),
                    _ => line["line"] = text.into(),
                }
                line
            }
            Self::Mpirun(text) => json!({"time": now(), "source": "mpirun", "line": text}),
            Self::Launcher(level, text) => {
                json!({"time": now(), "source": "launcher", "level": level.name(), "message": text})
            }
        }
    }
}

/// Returns the current time as in RFC 3339.
pub(super) fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Returns the style of a rank's tag. Rank 0, which reports the progress of training, stands out; neighbors differ.
fn rank_style(rank: usize) -> Style {
    const COLORS: [AnsiColor; 5] =
        [AnsiColor::Cyan, AnsiColor::Yellow, AnsiColor::Magenta, AnsiColor::Blue, AnsiColor::BrightBlack];
    match rank {
        0 => AnsiColor::Green.on_default().bold(),
        _ => COLORS[(rank - 1) % COLORS.len()].on_default(),
    }
}
