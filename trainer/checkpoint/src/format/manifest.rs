//! The manifest of a checkpoint: the file that is written last and makes the other files a checkpoint.

use std::{collections::BTreeMap, fs::File, io, path::PathBuf};

use bytes::Bytes;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use arinar_store::{Store, StoreError};

use crate::error::CheckpointError;

/// Name of the manifest within a checkpoint.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Name of the state within a checkpoint.
pub(crate) const STATE: &str = "state.json";

/// The format version that this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Lists every file of a checkpoint except the manifest itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// [`FORMAT_VERSION`] of the program that wrote the checkpoint.
    pub format_version: u32,
    /// Steps trained.
    pub step: u64,
    /// The files.
    pub files: Vec<FileEntry>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileEntry {
    /// Name within the folder of the checkpoint.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// XXH3-128 of the contents, as 32 hexadecimal digits.
    pub xxh3_128: String,
}

impl FileEntry {
    /// Creates the entry of a file with these contents.
    pub(crate) fn of(name: &str, contents: &[u8]) -> Self {
        Self { name: name.to_owned(), bytes: contents.len() as u64, xxh3_128: format!("{:032x}", xxh3_128(contents)) }
    }

    /// Compares the file found at `url` with this entry.
    ///
    /// # Errors
    /// Returns [`CheckpointError::Damaged`] if they differ.
    pub(crate) fn compare(&self, found: &Self, url: &str) -> Result<(), CheckpointError> {
        let what = if found.bytes != self.bytes {
            format!("it has {} bytes, the manifest says {}", found.bytes, self.bytes)
        } else if found.xxh3_128 != self.xxh3_128 {
            format!("its XXH3-128 is {}, the manifest says {}", found.xxh3_128, self.xxh3_128)
        } else {
            return Ok(());
        };
        Err(CheckpointError::Damaged { url: url.to_owned(), what })
    }
}

/// Returns the name of a step's folder within a run, for example `step-00012000`.
pub fn step_folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Returns the step of a folder with this name, or `None` if it is not the folder of a step.
pub fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    if digits.len() < 8 { None } else { digits.parse().ok() }
}

/// Reads the manifest of a checkpoint.
///
/// # Errors
/// Returns [`CheckpointError::Damaged`] if it cannot be parsed or has another format version.
pub(crate) fn read(store: &Store, step: u64) -> Result<Manifest, CheckpointError> {
    let name = format!("{}/{MANIFEST}", step_folder_name(step));
    let bytes = store.get(&name)?;
    let damaged = |what: String| CheckpointError::Damaged { url: store.url_of(&name), what };
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if manifest.format_version != FORMAT_VERSION {
        let version = manifest.format_version;
        return Err(damaged(format!("format version {version}, but this program reads {FORMAT_VERSION}")));
    }
    Ok(manifest)
}

/// Reads one file of a checkpoint into memory and compares it with its entry in the manifest.
///
/// # Errors
/// Returns [`CheckpointError::Damaged`] if length or hash differ, or an error of the store.
pub(crate) fn read_file(store: &Store, step: u64, entry: &FileEntry) -> Result<Bytes, CheckpointError> {
    let name = format!("{}/{}", step_folder_name(step), entry.name);
    let contents = store.get(&name)?;
    entry.compare(&FileEntry::of(&entry.name, &contents), &store.url_of(&name))?;
    Ok(contents)
}

/// Maps one file of a checkpoint in a local store into memory and compares it with its entry in the manifest.
///
/// # Errors
/// The same as those of [`read_file`].
pub(crate) fn map_file(store: &Store, step: u64, entry: &FileEntry) -> Result<Mmap, CheckpointError> {
    let name = format!("{}/{}", step_folder_name(step), entry.name);
    let path = store.local_path(&name).unwrap_or_else(|| PathBuf::from(&name));
    let mapped = File::open(&path).and_then(|file| {
        // SAFETY: the files of a checkpoint do not change once its manifest is written, and the lease keeps other runs out
        // of the folder. If a file is truncated nevertheless, this process ends with SIGBUS, as with a failing disk.
        unsafe { Mmap::map(&file) }
    });
    let mapped = mapped.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => StoreError::Missing { url: store.url_of(&name) },
        _ => StoreError::File { path, source },
    })?;
    entry.compare(&FileEntry::of(&entry.name, &mapped), &store.url_of(&name))?;
    Ok(mapped)
}

/// Compares all files of a checkpoint in a local store with its manifest, and returns the manifest.
///
/// # Errors
/// The same as those of [`read_file`].
pub(crate) fn verify(store: &Store, step: u64) -> Result<Manifest, CheckpointError> {
    let manifest = read(store, step)?;
    for entry in &manifest.files {
        map_file(store, step, entry)?;
    }
    Ok(manifest)
}

/// The folder of a step within a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StepEntry {
    /// The step.
    pub step: u64,
    /// True if the folder has a manifest.
    pub committed: bool,
}

/// Lists the steps that have a folder in a run, in ascending order.
///
/// # Errors
/// Returns an error if the store cannot be listed.
pub(crate) fn list_steps(store: &Store) -> Result<Vec<StepEntry>, StoreError> {
    let mut steps = BTreeMap::new();
    for object in store.list("")? {
        let Some((folder, name)) = object.name.split_once('/') else { continue };
        if let Some(step) = step_of(folder) {
            *steps.entry(step).or_insert(false) |= name == MANIFEST;
        }
    }
    Ok(steps.into_iter().map(|(step, committed)| StepEntry { step, committed }).collect())
}

/// Lists the steps of the checkpoints of a run, that is, of the folders that have a manifest, in ascending order.
///
/// # Errors
/// Returns an error if the store cannot be listed.
pub(crate) fn committed_steps(store: &Store) -> Result<Vec<u64>, StoreError> {
    let entries = list_steps(store)?;
    Ok(entries.into_iter().filter(|entry| entry.committed).map(|entry| entry.step).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_name_steps() {
        assert_eq!(step_folder_name(12000), "step-00012000");
        for step in [0, 7, 123_456_789] {
            assert_eq!(step_of(&step_folder_name(step)), Some(step));
        }
        for other in ["step-1", "step-0000000x", "steps", "tmp"] {
            assert_eq!(step_of(other), None, "{other}");
        }
    }
}
