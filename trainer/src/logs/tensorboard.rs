//! TensorBoard event files.
//!
//! Records and scalar summaries come from tensorboard-rs. Its own file writer panics on a full disk and cannot write text, so
//! this module has its own.

use std::{
    fs::File,
    io::{self, BufWriter},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use protobuf::{Message, RepeatedField};
use tensorboard_proto::{
    event::{Event, SessionLog, SessionLog_SessionStatus},
    summary::{Summary, Summary_Value, SummaryMetadata, SummaryMetadata_PluginData},
    tensor::TensorProto,
    types::DataType,
};
use tensorboard_rs::{record_writer::RecordWriter, summary};

/// Maximum time that a value stays in the buffer.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// Approximate maximum size of a file in bytes. Files are uploaded to a remote store as a whole.
const FILE_BYTES: usize = 8 << 20;

/// Prefix of the names of event files, which TensorBoard looks for.
const PREFIX: &str = "events.out.tfevents.";
/// Suffix of the names of event files of this program.
const SUFFIX: &str = ".arinar";

/// Returns whether a file of this name is an event file of this program.
pub(super) fn is_event_file(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// The event file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the TensorBoard file {}: {source}", .path.display())]
pub(crate) struct TensorBoardError {
    /// Path of the file or folder.
    pub path: PathBuf,
    /// Error of the system.
    pub source: io::Error,
}

/// Writes event files: when one becomes too large, it is continued in another one.
pub(crate) struct EventWriter {
    path: PathBuf,
    records: RecordWriter<BufWriter<File>>,
    bytes: usize,
    flushed: Instant,
}

impl EventWriter {
    /// Creates a new file in `folder`. TensorBoard discards the values of `first_step` and later steps in earlier files of the
    /// folder, which a killed run has written after its last checkpoint.
    ///
    /// # Errors
    /// Returns an error if the folder or file cannot be written.
    pub(super) fn create(folder: &Path, first_step: u64) -> Result<Self, TensorBoardError> {
        std::fs::create_dir_all(folder).map_err(|source| TensorBoardError { path: folder.to_path_buf(), source })?;
        let mut writer = Self::open(folder)?;
        let mut session = SessionLog::new();
        session.set_status(SessionLog_SessionStatus::START);
        let mut start = Event::new();
        start.set_session_log(session);
        writer.write(start, first_step)?;
        writer.flush()?;
        Ok(writer)
    }

    fn open(folder: &Path) -> Result<Self, TensorBoardError> {
        let created = new_file(folder);
        let (path, file) = created.map_err(|source| TensorBoardError { path: folder.to_path_buf(), source })?;
        let records = RecordWriter::new(BufWriter::new(file));
        let mut writer = Self { path, records, bytes: 0, flushed: Instant::now() };
        let mut version = Event::new();
        version.set_file_version("brain.Event:2".to_owned());
        writer.write(version, 0)?;
        Ok(writer)
    }

    /// Writes one point of each curve.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(super) fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<(), TensorBoardError> {
        if self.bytes > FILE_BYTES {
            self.start_next_file()?;
        }
        for (tag, value) in scalars {
            self.summary(summary::scalar(tag, *value as f32), step)?;
        }
        if self.flushed.elapsed() >= FLUSH_INTERVAL { self.flush() } else { Ok(()) }
    }

    /// Writes a Markdown text under `tag`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(super) fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<(), TensorBoardError> {
        let mut tensor = TensorProto::new();
        tensor.set_dtype(DataType::DT_STRING);
        tensor.set_string_val(RepeatedField::from_vec(vec![text.as_bytes().to_vec()]));
        let mut plugin = SummaryMetadata_PluginData::new();
        plugin.set_plugin_name("text".to_owned());
        let mut metadata = SummaryMetadata::new();
        metadata.set_plugin_data(plugin);
        let mut value = Summary_Value::new();
        value.set_tag(tag.to_owned());
        value.set_metadata(metadata);
        value.set_tensor(tensor);
        let mut summary = Summary::new();
        summary.set_value(RepeatedField::from_vec(vec![value]));
        self.summary(summary, step)
    }

    /// Flushes the buffer.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(super) fn flush(&mut self) -> Result<(), TensorBoardError> {
        self.flushed = Instant::now();
        self.records.flush().map_err(|source| self.error(source))
    }

    fn start_next_file(&mut self) -> Result<(), TensorBoardError> {
        self.flush()?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        *self = Self::open(folder)?;
        Ok(())
    }

    fn summary(&mut self, summary: Summary, step: u64) -> Result<(), TensorBoardError> {
        let mut event = Event::new();
        event.set_summary(summary);
        self.write(event, step)
    }

    fn write(&mut self, mut event: Event, step: u64) -> Result<(), TensorBoardError> {
        event.set_wall_time(now().as_secs_f64());
        event.set_step(step as i64);
        let bytes = event.write_to_bytes().map_err(|error| self.error(io::Error::other(error)))?;
        self.bytes += bytes.len();
        self.records.write(&bytes).map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> TensorBoardError {
        TensorBoardError { path: self.path.clone(), source }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Creates a file that TensorBoard reads after all earlier ones, because it sorts them by name. The nanoseconds distinguish
/// starts on different machines, whose files may be uploaded to one folder; the number distinguishes files within a folder.
fn new_file(folder: &Path) -> io::Result<(PathBuf, File)> {
    let now = now();
    let mut number = 0;
    loop {
        let (secs, nanos) = (now.as_secs(), now.subsec_nanos());
        let name = format!("{PREFIX}{secs:010}.{nanos:09}.{number}{SUFFIX}");
        let path = folder.join(name);
        match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            created => return created.map(|file| (path, file)),
        }
    }
}
