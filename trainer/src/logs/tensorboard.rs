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
/// Number of digits that count the files whose names cannot begin with a time.
const COUNTER_DIGITS: usize = 10;
/// Largest count that is continued, which leaves room for concurrent starts.
const MAX_COUNTER: u64 = 9_999_999_000;

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
    /// Creates a new file in `folder`, which TensorBoard reads after the others there and after the event file `newest` of
    /// another folder. TensorBoard discards the values of `first_step` and later steps in earlier files of the
    /// folder, which a killed run has written after its last checkpoint.
    ///
    /// # Errors
    /// Returns an error if the folder or file cannot be written.
    pub(super) fn create(folder: &Path, first_step: u64, newest: Option<&str>) -> Result<Self, TensorBoardError> {
        std::fs::create_dir_all(folder).map_err(|source| TensorBoardError { path: folder.to_path_buf(), source })?;
        let mut writer = Self::open(folder, newest)?;
        let mut session = SessionLog::new();
        session.set_status(SessionLog_SessionStatus::START);
        let mut start = Event::new();
        start.set_session_log(session);
        writer.write(start, first_step)?;
        writer.flush()?;
        Ok(writer)
    }

    fn open(folder: &Path, newest: Option<&str>) -> Result<Self, TensorBoardError> {
        let created = new_file(folder, newest);
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
        let own = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
        *self = Self::open(folder, own.as_deref())?;
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

/// Creates a file that TensorBoard reads after all files in the folder and after the file `newest`.
fn new_file(folder: &Path, newest: Option<&str>) -> io::Result<(PathBuf, File)> {
    let now = now();
    let mut newest = newest.map(str::to_owned);
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        newest = newest.max(Some(name).filter(|name| name.starts_with(PREFIX)));
    }
    let mut number = 0;
    loop {
        let path = folder.join(file_name(now, number, newest.as_deref()));
        match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            created => return created.map(|file| (path, file)),
        }
    }
}

/// Returns the name of a file that is created `now` and follows the file `newest`.
///
/// TensorBoard reads the files of a folder in the order of their names. The time in a name makes it follow earlier ones, and
/// the nanoseconds distinguish starts on different machines, whose files may be uploaded to one folder. The clock may have been
/// set back, or differ between machines; then the name continues from `newest`.
fn file_name(now: Duration, number: u64, newest: Option<&str>) -> String {
    let nanos = now.subsec_nanos();
    let at = |secs: u64| format!("{PREFIX}{secs:010}.{nanos:09}.{number}{SUFFIX}");
    let Some(newest) = newest else { return at(now.as_secs()) };
    let secs = newest.strip_prefix(PREFIX).and_then(|rest| rest.split('.').next()?.parse::<u64>().ok());
    let times = [Some(now.as_secs()), secs.and_then(|secs| secs.checked_add(1))];
    let name = times.into_iter().flatten().map(at).find(|name| name.as_str() > newest);
    // The name of another program need not begin with a time of ten digits. A longer name follows its own beginning.
    name.unwrap_or_else(|| {
        let stem = newest.strip_suffix(SUFFIX).unwrap_or(newest);
        let counter = stem.rsplit_once('.').filter(|(_, digits)| digits.len() == COUNTER_DIGITS);
        let counter = counter.and_then(|(base, digits)| Some((base, digits.parse::<u64>().ok()?)));
        let counter = counter.filter(|(_, count)| *count < MAX_COUNTER);
        let (base, count) = counter.map_or((newest, 0), |(base, count)| (base, count + 1));
        format!("{base}.{:0COUNTER_DIGITS$}{SUFFIX}", count + number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::new(1_732_741_234, 56);

    #[test]
    fn a_new_file_follows_all_others_whatever_the_clock_says() {
        for newest in [
            "events.out.tfevents.1732741000.000000056.0.arinar",
            "events.out.tfevents.1732741234.000000056.0.arinar",
            "events.out.tfevents.1732741234.999999999.7.arinar",
            "events.out.tfevents.2932741234.000000001.0.arinar",
            "events.out.tfevents.2932741234.some-host.4711.0",
            "events.out.tfevents.2932741234.host.arinar.v2",
            "events.out.tfevents.9999999999.000000000.0.arinar",
            "events.out.tfevents.99999999999.host",
            "events.out.tfevents.9.host",
            "events.out.tfevents.host",
            "events.out.tfevents.",
            "events.out.tfevents.zzz.0000000004.arinar",
            "events.out.tfevents.zzz.9999999999.arinar",
            "events.out.tfevents.18446744073709551615.host",
        ] {
            let mut last = newest.to_owned();
            // Several starts in the same nanosecond, which also bounds the length of the name.
            for _ in 0..5 {
                let name = file_name(NOW, 0, Some(&last));
                assert!(name > last && is_event_file(&name), "{name} does not follow {last}");
                assert!(file_name(NOW, 1, Some(&last)) > last);
                last = name;
            }
            assert!(last.len() <= newest.len() + 40, "{last}");
        }
        assert_eq!(file_name(NOW, 0, None), "events.out.tfevents.1732741234.000000056.0.arinar");
    }

    #[test]
    fn files_in_the_folder_and_elsewhere_are_considered() {
        let folder = tempfile::tempdir().expect("a folder");
        let created = |newest| {
            let (path, _) = new_file(folder.path(), newest).expect("a new file");
            path.file_name().map(|name| name.to_string_lossy().into_owned()).expect("a name")
        };
        std::fs::write(folder.path().join("events.out.tfevents.4000000000.host"), "").expect("a file");
        std::fs::write(folder.path().join("zzz"), "").expect("a file");
        let first = created(None);
        assert!(first.as_str() > "events.out.tfevents.4000000000.host", "{first}");
        let second = created(Some("events.out.tfevents.5000000000.000000000.0.arinar"));
        assert!(second.as_str() > "events.out.tfevents.5000000000.000000000.0.arinar", "{second}");
        assert!(created(None) > second);
    }
}
