//! The reporter: all output of a program for its user.

use std::io::{self, IsTerminal, Write};

use serde_json::{Value, json};

use crate::output_error::OutputError;

/// A handle to the output of a program, which is passed to every operation that has something to report.
///
/// Results and messages are written to standard output; warnings, notes and progress to standard error. Messages that
/// cannot be written, for example to a closed pipe, are dropped, because they must not end a run. A result that cannot be
/// written is an error, because it is the purpose of its command.
///
/// ```
/// let reporter = arinar_data::Reporter::console();
/// reporter.print("verifying 3 shards");
/// reporter.result("3 shards with 300 records are sound")?;
/// # Ok::<(), arinar_data::OutputError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Reporter {
    messages: Messages,
    shows_progress: bool,
}

#[derive(Clone, Copy, Debug)]
enum Messages {
    None,
    Text,
    Json,
}

impl Reporter {
    /// Creates a reporter that writes text, and progress as a bar on a terminal and as lines elsewhere.
    pub fn console() -> Self {
        Self { messages: Messages::Text, shows_progress: true }
    }

    /// Creates a reporter that writes each message as a line of JSON.
    pub fn json() -> Self {
        Self { messages: Messages::Json, shows_progress: true }
    }

    /// Creates a reporter that writes messages as text, and no progress. All ranks except rank 0 use it.
    pub fn without_progress() -> Self {
        Self { messages: Messages::Text, shows_progress: false }
    }

    /// Creates a reporter that writes neither messages nor progress, but notes and warnings.
    pub fn silent() -> Self {
        Self { messages: Messages::None, shows_progress: false }
    }

    /// Writes a message.
    pub fn print(&self, message: &str) {
        self.record(message, || json!({ "message": message }));
    }

    /// Writes a record in the format of the output: `text`, or the JSON value.
    pub fn record(&self, text: &str, value: impl FnOnce() -> Value) {
        let _ = self.result_record(text, value);
    }

    /// Writes a result.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn result(&self, result: &str) -> Result<(), OutputError> {
        self.result_record(result, || json!({ "message": result }))
    }

    /// Writes a result in the format of the output: `text`, or the JSON value.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn result_record(&self, text: &str, value: impl FnOnce() -> Value) -> Result<(), OutputError> {
        let written = match self.messages {
            Messages::None => Ok(()),
            Messages::Text => write_line(text),
            Messages::Json => write_line(&value().to_string()),
        };
        written.map_err(OutputError)
    }

    /// Writes a line to standard error.
    pub fn note(&self, line: &str) {
        let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
    }

    /// Writes a warning to standard error.
    pub fn warn(&self, text: &str) {
        self.note(&format!("arinar: warning: {text}"));
    }

    /// Returns true if progress is written as lines, because there is no terminal for a bar.
    pub(crate) fn shows_progress_lines(&self) -> bool {
        self.shows_progress && !self.shows_bar()
    }

    /// Returns true if progress is shown as a bar.
    ///
    /// The bar is drawn on standard error. Open MPI gives its ranks a pseudo-terminal for standard output, but a pipe
    /// for standard error.
    pub fn shows_bar(&self) -> bool {
        self.shows_progress && matches!(self.messages, Messages::Text) && io::stderr().is_terminal()
    }
}

fn write_line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(format!("{text}\n").as_bytes())?;
    stdout.flush()
}
