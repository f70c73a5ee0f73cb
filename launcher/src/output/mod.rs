//! The output of the launcher: tagged lines of the ranks, messages of the launcher, and a status line at the bottom of a
//! terminal. Everything except the status line is also appended to log files, one per rank.

mod line;
mod log_files;
mod nonblocking_writer;
mod terminal;

use std::{io, path::Path};

use crate::{arguments::LogFormat, stop::Stop};

pub(crate) use line::{Level, Stream};
pub(crate) use terminal::write_directly;

use line::{Line, now};
use log_files::{LAUNCHER, LogFiles, file_name};
use nonblocking_writer::{NonblockingWriter, WriterThread};
use terminal::Terminal;

/// An update of the terminal.
#[derive(Debug)]
enum Update {
    Line(Line),
    /// The text of the status line; empty to remove it.
    Status(String),
}

/// A handle to the terminal and the log files.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    terminal: NonblockingWriter<Update>,
    /// Names of files and lines to append to them.
    files: Option<NonblockingWriter<(String, String)>>,
}

/// The threads that write the output.
#[derive(Debug)]
pub(crate) struct OutputThreads(Vec<WriterThread>);

impl OutputThreads {
    /// Waits, up to a timeout, until everything is written. All clones of the output must have been dropped.
    pub(crate) fn join(self) {
        self.0.into_iter().for_each(WriterThread::join);
    }
}

impl Output {
    /// Starts output to the terminal.
    ///
    /// # Errors
    /// The writer thread cannot be started.
    pub(crate) fn start(format: LogFormat) -> io::Result<(Self, OutputThreads)> {
        let mut terminal = Terminal::new(format);
        let (terminal, thread) = NonblockingWriter::start("output", move |update| match update {
            Update::Line(line) => terminal.show(line),
            Update::Status(text) => terminal.set_status(text),
        })?;
        Ok((Self { terminal, files: None }, OutputThreads(vec![thread])))
    }

    /// Starts output to log files in `folder`.
    ///
    /// # Errors
    /// The folder is not writable.
    pub(crate) fn open_log_files(&mut self, folder: &Path, threads: &mut OutputThreads) -> Result<(), Stop> {
        let unusable = |error: io::Error| Stop::configuration(format!("run.log_dir: {}: {error}", folder.display()));
        let mut files = LogFiles::open(folder).map_err(unusable)?;
        let (files, thread) =
            NonblockingWriter::start("log files", move |(name, line): (String, String)| files.append(&name, &line))
                .map_err(unusable)?;
        self.files = Some(files);
        threads.0.push(thread);
        Ok(())
    }

    /// Writes a message of the launcher without waiting.
    pub(crate) fn log(&self, level: Level, text: impl Into<String>) {
        let text = text.into();
        if let Some(files) = &self.files {
            files.send_detached(launcher_line(level, &text));
        }
        self.terminal.send_detached(Update::Line(Line::Launcher(level, text)));
    }

    /// Writes the last message of the launcher. Waits until there is room for it, so that it is not lost when the process
    /// exits.
    pub(crate) async fn log_last(&self, level: Level, text: String) {
        if let Some(files) = &self.files {
            files.send(launcher_line(level, &text)).await;
        }
        self.terminal.send(Update::Line(Line::Launcher(level, text))).await;
    }

    /// Writes a line of a rank, or of mpirun itself for `None`.
    pub(crate) async fn job_line(&self, rank: Option<usize>, stream: Stream, text: String) {
        if let Some(files) = &self.files {
            files.send((file_name(rank), text.clone())).await;
        }
        let line = match rank {
            Some(rank) => Line::Rank { rank, stream, text },
            None if is_boilerplate(&text) => return,
            None => Line::Mpirun(text),
        };
        self.terminal.send(Update::Line(line)).await;
    }

    /// Appends a header to the log files of all ranks and of mpirun.
    pub(crate) async fn header(&self, ranks: usize, text: &str) {
        let Some(files) = &self.files else { return };
        for rank in (0..ranks).map(Some).chain([None]) {
            files.send((file_name(rank), format!("=== {} {text}", now()))).await;
        }
    }

    /// Replaces the status line of a terminal; an empty text removes it.
    pub(crate) fn set_status(&self, text: String) {
        self.terminal.send_or_drop(Update::Status(text));
    }
}

fn launcher_line(level: Level, text: &str) -> (String, String) {
    (LAUNCHER.to_owned(), format!("{} {}: {text}", now(), level.name()))
}

/// Returns true for lines that mpirun prints in a frame about every failed job. They are in the log file only, because the
/// launcher reports which rank failed and why.
fn is_boilerplate(line: &str) -> bool {
    const PREFIXES: [&str; 6] = [
        "Primary job",
        "a non-zero exit code",
        "mpirun detected that one or more processes",
        "the job to be terminated",
        "Process name:",
        "Exit code:",
    ];
    let line = line.trim();
    line.chars().all(|letter| letter == '-') || PREFIXES.iter().any(|prefix| line.starts_with(prefix))
}

#[cfg(test)]
impl Output {
    /// Returns an output that discards everything.
    ///
    /// # Errors
    /// The writer thread cannot be started.
    pub(crate) fn discard() -> io::Result<Self> {
        Ok(Self { terminal: NonblockingWriter::start("discard", drop)?.0, files: None })
    }
}
