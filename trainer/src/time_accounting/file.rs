//! The file that records how far a run has come, so that lost work is known after an interruption.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use arinar_protocol::Seconds;
use arinar_store::plain_file::nofollow;
use serde::{Deserialize, Serialize};

/// Name of the file in the folder of the curves.
const FILE: &str = "ledger.json";
/// Its name while it is being written.
const TEMPORARY: &str = "ledger.json.new";

/// Minimum time between two writes.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// The contents of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Contents {
    /// `run.dir`.
    run: String,
    seconds: Seconds,
}

/// The file of one run.
#[derive(Debug)]
pub(crate) struct TimeFile {
    path: PathBuf,
    run: String,
    written: Option<Instant>,
}

impl TimeFile {
    /// Refers to the file in the folder of the curves of the run `run` (its `run.dir`).
    pub(crate) fn new(log_dir: &Path, run: &str) -> Self {
        Self { path: log_dir.join(FILE), run: run.to_owned(), written: None }
    }

    /// Checks that a run may keep its file in `log_dir`: there is none, or one that was written by a run.
    ///
    /// # Errors
    /// Returns a message that names the file of another program, with the fix.
    pub(crate) fn check(log_dir: &Path) -> Result<(), String> {
        // A crash may leave an empty file, a truncated one, or zeros.
        let is_own = |text: &[u8]| [b"{\"run\":".as_slice(), b"\0"].iter().any(|start| text.starts_with(start));
        for path in [FILE, TEMPORARY].map(|name| log_dir.join(name)) {
            let text = std::fs::read(&path).unwrap_or_default();
            if !text.is_empty() && !is_own(&text) {
                return Err(format!(
                    "{} exists and was not written by this program; move it away or set run.log_dir to another folder",
                    path.display()
                ));
            }
        }
        Ok(())
    }

    /// Returns the time spent by earlier starts of the run, given the time that its checkpoint records. The time after the
    /// checkpoint is lost work. A file that is missing, unreadable, or of another run records none.
    pub(crate) fn earlier(&self, of_checkpoint: Seconds) -> Seconds {
        let text = std::fs::read(&self.path).unwrap_or_default();
        let contents = serde_json::from_slice::<Contents>(&text).ok().filter(|contents| contents.run == self.run);
        let lost = contents.map_or(0.0, |contents| contents.seconds.total() - of_checkpoint.total());
        let lost = if lost.is_finite() { lost.max(0.0) } else { 0.0 };
        Seconds { lost_work: of_checkpoint.lost_work + lost, ..of_checkpoint }
    }

    /// Records the time spent so far, at most once per [`WRITE_INTERVAL`]. Errors are ignored, because the curves in the same
    /// folder report them.
    pub(crate) fn record(&mut self, seconds: Seconds) {
        if self.written.is_some_and(|written| written.elapsed() < WRITE_INTERVAL) {
            return;
        }
        self.written = Some(Instant::now());
        let contents = Contents { run: self.run.clone(), seconds };
        let text = serde_json::to_vec(&contents).unwrap_or_default();
        let _ = replace(&self.path, &text);
    }
}

/// Replaces a file atomically.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_file_name(TEMPORARY);
    let mut options = File::options();
    nofollow(options.create(true).truncate(true).write(true)).open(&temporary)?.write_all(text)?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn time_after_the_checkpoint_is_lost_work() {
        let folder = tempfile::tempdir().unwrap();
        let saved = Seconds { compute: 10.0, lost_work: 1.0, ..Seconds::default() };
        let mut file = TimeFile::new(folder.path(), "a");
        assert_eq!(file.earlier(saved), saved, "no file, no loss");
        file.record(Seconds { compute: 13.0, all_reduce: 0.5, lost_work: 1.0, ..Seconds::default() });
        assert_eq!(file.earlier(saved), Seconds { lost_work: 4.5, ..saved });
        assert_eq!(TimeFile::new(folder.path(), "another").earlier(saved), saved);
        // Too soon to be written again. A checkpoint newer than the record has lost nothing.
        file.record(Seconds { compute: 99.0, ..Seconds::default() });
        assert_eq!(file.earlier(Seconds { compute: 50.0, ..Seconds::default() }).lost_work, 0.0);
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(file.earlier(saved), saved);
    }

    #[test]
    fn files_of_other_programs_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        TimeFile::check(folder.path()).unwrap();
        let mut file = TimeFile::new(folder.path(), "a");
        file.record(Seconds { compute: 13.0, ..Seconds::default() });
        TimeFile::check(folder.path()).unwrap();
        for (name, text) in [(FILE, r#"{"accounts": []}"#), (TEMPORARY, "2026-11-26 * opening balances")] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let message = TimeFile::check(folder.path()).unwrap_err();
            assert!(message.contains(name) && message.contains("run.log_dir"), "{message}");
            std::fs::remove_file(&path).unwrap();
        }
        // A symbolic link in the place of the temporary file is not followed.
        let other = folder.path().join("other");
        std::fs::write(&other, "of another program").unwrap();
        std::os::unix::fs::symlink(&other, folder.path().join(TEMPORARY)).unwrap();
        TimeFile::new(folder.path(), "a").record(Seconds::default());
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "of another program");
    }
}
