//! The standard streams of the launcher, with a status line at the bottom of a terminal.

use std::io::{self, Write};

use anstream::{AutoStream, ColorChoice};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::line::{Line, Stream};
use crate::arguments::LogFormat;

/// Writes text to a standard stream, for output that needs no writer thread.
///
/// # Errors
/// Returns an error if the stream is closed or full.
pub(crate) fn write_directly(stream: Stream, text: &str) -> io::Result<()> {
    let write = |stream: &mut dyn Write| stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
    match stream {
        Stream::Stdout => write(&mut io::stdout()),
        Stream::Stderr => write(&mut io::stderr()),
    }
}

/// The standard streams of the launcher. A write error never ends a run.
pub(super) struct Terminal {
    format: LogFormat,
    stdout: AutoStream<io::Stdout>,
    stderr: AutoStream<io::Stderr>,
    status: ProgressBar,
}

impl Terminal {
    /// Detects whether the streams are terminals. Output to anything else has no colors and no status line.
    pub(super) fn new(format: LogFormat) -> Self {
        let target =
            if format == LogFormat::Text { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let status = ProgressBar::with_draw_target(None, target);
        status.set_style(ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        let choice = |detected| if format == LogFormat::Json { ColorChoice::Never } else { detected };
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let (out, err) = (choice(AutoStream::choice(&stdout)), choice(AutoStream::choice(&stderr)));
        Self { format, stdout: AutoStream::new(stdout, out), stderr: AutoStream::new(stderr, err), status }
    }

    /// Displays a line above the status line.
    pub(super) fn show(&mut self, line: Line) {
        let stream = line.stream();
        let text = line.format(self.format);
        let status = self.status.clone();
        let _ = status.suspend(|| match stream {
            Stream::Stdout => write_line(&mut self.stdout, &text),
            Stream::Stderr => write_line(&mut self.stderr, &text),
        });
    }

    /// Replaces the status line; an empty text removes it.
    pub(super) fn set_status(&mut self, text: String) {
        if text.is_empty() {
            self.status.finish_and_clear();
        } else {
            self.status.set_message(text);
        }
    }
}

fn write_line(to: &mut impl Write, line: &str) -> io::Result<()> {
    to.write_all(format!("{line}\n").as_bytes())?;
    to.flush()
}
