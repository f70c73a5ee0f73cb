//! The log files.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The open log files of a folder, by name. A write error never ends a run.
pub(super) struct LogFiles {
    folder: PathBuf,
    open: BTreeMap<String, File>,
}

impl LogFiles {
    /// Opens a folder, and the launcher's own file in it.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let mut files = Self { folder: folder.to_owned(), open: BTreeMap::new() };
        files.file(LAUNCHER)?;
        Ok(files)
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        if !self.open.contains_key(name) {
            let path = self.folder.join(format!("{name}.log"));
            self.open.insert(name.to_owned(), OpenOptions::new().create(true).append(true).open(path)?);
        }
        self.open.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Appends a line to a file.
    pub(super) fn append(&mut self, name: &str, line: &str) {
        if let Ok(file) = self.file(name) {
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
    }
}

/// Name of the launcher's file, without its extension.
pub(super) const LAUNCHER: &str = "launcher";

/// Returns the name of the file of a rank, or of mpirun itself for `None`, without its extension.
pub(super) fn file_name(rank: Option<usize>) -> String {
    rank.map_or_else(|| "mpirun".to_owned(), |rank| format!("rank-{rank}"))
}
