//! What people see: tagged lines of ranks, the launcher's own words, and one status line that stays at the bottom of a
//! terminal. All of it, but the status line, is in files too, one for each rank.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    arguments::LogFormat,
    exit::Stop,
    funnel::{Drained, Funnel},
};

/// Which of a process's two streams a line came from, and goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
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

/// How much a word of the launcher matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Good to know.
    Info,
    /// Something went wrong, and the run goes on.
    Warning,
    /// The last word of a run that failed.
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Something to show.
#[derive(Debug)]
enum Shown {
    Rank {
        rank: usize,
        stream: Stream,
        text: String,
    },
    Mpirun(String),
    Own(Level, String),
    /// The line at the bottom; empty for none.
    Status(String),
}

/// Where all lines go.
#[derive(Clone, Debug)]
pub struct Output {
    terminal: Funnel<Shown>,
    files: Option<Funnel<(String, String)>>,
}

/// Waits until all is written, once all clones of the output are gone.
#[derive(Debug)]
pub struct Rest(Vec<Drained>);

impl Rest {
    /// Waits, but not for ever.
    pub fn wait(self) {
        self.0.into_iter().for_each(Drained::wait);
    }
}

impl Output {
    /// To the terminal alone, at first.
    ///
    /// # Errors
    /// There is no room for a thread.
    pub fn start(format: LogFormat) -> io::Result<(Self, Rest)> {
        let mut screen = Screen::new(format);
        let (terminal, drained) = Funnel::start("output", move |shown| screen.show(shown))?;
        Ok((Self { terminal, files: None }, Rest(vec![drained])))
    }

    /// From now on lines go to files in `folder`, too.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn keep_in(&mut self, folder: &Path, rest: &mut Rest) -> Result<(), Stop> {
        let unusable = |error: io::Error| Stop::configuration(format!("run.log_dir: {}: {error}", folder.display()));
        let mut files = Files { folder: folder.to_owned(), open: BTreeMap::new() };
        files.open("launcher").map_err(unusable)?;
        let (files, drained) =
            Funnel::start("log files", move |(name, line): (String, String)| files.write(&name, &line))
                .map_err(unusable)?;
        self.files = Some(files);
        rest.0.push(drained);
        Ok(())
    }

    /// The launcher says something.
    pub fn say(&self, level: Level, text: impl Into<String>) {
        let text = text.into();
        if let Some(files) = &self.files {
            files.insist(("launcher".to_owned(), format!("{} {}: {text}", now(), level.name())));
        }
        self.terminal.insist(Shown::Own(level, text));
    }

    /// As [`Output::say`]; waits until there is room for it.
    pub async fn say_at_last(&self, level: Level, text: String) {
        if let Some(files) = &self.files {
            files.put(("launcher".to_owned(), format!("{} {}: {text}", now(), level.name()))).await;
        }
        self.terminal.put(Shown::Own(level, text)).await;
    }

    /// A rank, or mpirun where there is none, has written a line.
    pub async fn line(&self, rank: Option<usize>, stream: Stream, text: String) {
        if let Some(files) = &self.files {
            files.put((file_name(rank), text.clone())).await;
        }
        match rank {
            Some(rank) => self.terminal.put(Shown::Rank { rank, stream, text }).await,
            None if says_nothing(&text) => {}
            None => self.terminal.put(Shown::Mpirun(text)).await,
        }
    }

    /// Begins a part of the files of all ranks.
    pub async fn header(&self, ranks: usize, text: &str) {
        let Some(files) = &self.files else { return };
        for rank in (0..ranks).map(Some).chain([None]) {
            files.put((file_name(rank), format!("=== {} {text}", now()))).await;
        }
    }

    /// Replaces the line at the bottom of a terminal.
    pub fn status(&self, text: String) {
        self.terminal.offer(Shown::Status(text));
    }
}

/// True for what mpirun says of every job that fails, in a frame, while the launcher says who failed and why. The
/// file has it.
fn says_nothing(line: &str) -> bool {
    const ALWAYS: [&str; 6] = [
        "Primary job",
        "a non-zero exit code",
        "mpirun detected that one or more processes",
        "the job to be terminated",
        "Process name:",
        "Exit code:",
    ];
    let line = line.trim();
    line.chars().all(|letter| letter == '-') || ALWAYS.iter().any(|start| line.starts_with(start))
}

fn file_name(rank: Option<usize>) -> String {
    rank.map_or_else(|| "mpirun".to_owned(), |rank| format!("rank-{rank}"))
}

fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Open log files by name. That one cannot be written is no reason to end a run.
struct Files {
    folder: PathBuf,
    open: BTreeMap<String, File>,
}

impl Files {
    fn open(&mut self, name: &str) -> io::Result<&mut File> {
        if !self.open.contains_key(name) {
            let path = self.folder.join(format!("{name}.log"));
            self.open.insert(name.to_owned(), OpenOptions::new().create(true).append(true).open(path)?);
        }
        self.open.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write(&mut self, name: &str, line: &str) {
        if let Ok(file) = self.open(name) {
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
    }
}

/// The two streams of the launcher itself. That nobody reads them is no reason to end a run.
struct Screen {
    format: LogFormat,
    stdout: AutoStream<io::Stdout>,
    stderr: AutoStream<io::Stderr>,
    bar: ProgressBar,
}

impl Screen {
    fn new(format: LogFormat) -> Self {
        // Hidden where standard error is no terminal.
        let target =
            if format == LogFormat::Text { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        let choice = |wanted| if format == LogFormat::Json { ColorChoice::Never } else { wanted };
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let (out, err) = (choice(AutoStream::choice(&stdout)), choice(AutoStream::choice(&stderr)));
        Self { format, stdout: AutoStream::new(stdout, out), stderr: AutoStream::new(stderr, err), bar }
    }

    fn show(&mut self, shown: Shown) {
        let (stream, line) = match (shown, self.format) {
            (Shown::Status(text), _) => {
                if text.is_empty() {
                    self.bar.finish_and_clear()
                } else {
                    self.bar.set_message(text)
                }
                return;
            }
            (Shown::Rank { rank, stream, text }, LogFormat::Text) => {
                let style = rank_style(rank);
                (stream, format!("{style}[{rank}]{style:#} {text}"))
            }
            (Shown::Mpirun(text), LogFormat::Text) => {
                let style = Style::new().dimmed();
                (Stream::Stderr, format!("{style}[mpirun] {text}{style:#}"))
            }
            (Shown::Own(level, text), LogFormat::Text) => {
                let (style, word) = match level {
                    Level::Info => (Style::new().bold(), ""),
                    Level::Warning => (AnsiColor::Yellow.on_default().bold(), " warning:"),
                    Level::Error => (AnsiColor::Red.on_default().bold(), " error:"),
                };
                (Stream::Stderr, format!("{style}arinar-launcher:{word}{style:#} {text}"))
            }
            (Shown::Rank { rank, stream, text }, LogFormat::Json) => {
                let mut line =
                    serde_json::json!({"time": now(), "source": "rank", "rank": rank, "stream": stream.name()});
                // With --log-format json, the trainer's own lines are objects.
                match serde_json::from_str(&text) {
                    Ok(serde_json::Value::Object(record)) => line["record"] = record.into(),
                    _ => line["line"] = text.into(),
                }
                (stream, line.to_string())
            }
            (Shown::Mpirun(text), LogFormat::Json) => {
                let line = serde_json::json!({"time": now(), "source": "mpirun", "line": text});
                (Stream::Stderr, line.to_string())
            }
            (Shown::Own(level, text), LogFormat::Json) => {
                let line =
                    serde_json::json!({"time": now(), "source": "launcher", "level": level.name(), "message": text});
                (Stream::Stderr, line.to_string())
            }
        };
        let bar = self.bar.clone();
        let _ = bar.suspend(|| match stream {
            Stream::Stdout => write_line(&mut self.stdout, &line),
            Stream::Stderr => write_line(&mut self.stderr, &line),
        });
    }
}

fn write_line(to: &mut impl Write, line: &str) -> io::Result<()> {
    to.write_all(format!("{line}\n").as_bytes())?;
    to.flush()
}

/// Rank 0 tells how training goes: it stands out. Neighbours differ.
fn rank_style(rank: usize) -> Style {
    const COLOURS: [AnsiColor; 5] =
        [AnsiColor::Cyan, AnsiColor::Yellow, AnsiColor::Magenta, AnsiColor::Blue, AnsiColor::BrightBlack];
    match rank {
        0 => AnsiColor::Green.on_default().bold(),
        _ => COLOURS[(rank - 1) % COLOURS.len()].on_default(),
    }
}

#[cfg(test)]
impl Output {
    /// For tests: nobody sees it.
    ///
    /// # Errors
    /// There is no room for a thread.
    pub fn nowhere() -> io::Result<Self> {
        Ok(Self { terminal: Funnel::start("nowhere", drop)?.0, files: None })
    }
}
