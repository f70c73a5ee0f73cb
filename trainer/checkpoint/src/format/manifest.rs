//! What a checkpoint consists of: the file written last, which makes the others a checkpoint.

use std::{collections::BTreeMap, fs::File, io, path::PathBuf};

use bytes::Bytes;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use arinar_store::{Store, StoreError};

use super::CheckpointError;

/// Name of the manifest within a checkpoint.
pub const MANIFEST: &str = "manifest.json";
/// Name of the state within a checkpoint.
pub const STATE: &str = "state.json";

/// The layout this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Every file of a checkpoint but the manifest itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`] of the program that wrote it.
    pub format_version: u32,
    /// Steps trained.
    pub step: u64,
    /// The files, by name.
    pub files: Vec<FileEntry>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name within the checkpoint's folder.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// XXH3-128 of the contents, 32 hexadecimal digits.
    pub xxh3_128: String,
}

impl FileEntry {
    /// Describes contents that are about to be written.
    pub fn of(name: &str, contents: &[u8]) -> Self {
        Self { name: name.to_owned(), bytes: contents.len() as u64, xxh3_128: format!("{:032x}", xxh3_128(contents)) }
    }

    /// An error unless the file found at `url` is this one.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`].
    pub fn compare(&self, found: &Self, url: &str) -> Result<(), CheckpointError> {
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

/// The folder of a step within a run: `step-00012000`.
pub fn folder(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step a folder name stands for.
pub fn step_of(folder: &str) -> Option<u64> {
    let digits = folder.strip_prefix("step-")?;
    if digits.len() < 8 { None } else { digits.parse().ok() }
}

/// Reads a checkpoint's manifest.
///
/// # Errors
/// [`CheckpointError::Damaged`] if it does not parse or is of another format version.
pub fn read(store: &Store, step: u64) -> Result<Manifest, CheckpointError> {
    let name = format!("{}/{MANIFEST}", folder(step));
    let bytes = store.get(&name)?;
    let damaged = |what: String| CheckpointError::Damaged { url: store.url_of(&name), what };
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if manifest.format_version != FORMAT_VERSION {
        let version = manifest.format_version;
        return Err(damaged(format!("format version {version}, but this program reads {FORMAT_VERSION}")));
    }
    Ok(manifest)
}

/// Reads one file of a checkpoint into memory and compares it with its manifest entry.
///
/// # Errors
/// [`CheckpointError::Damaged`] if length or hash differ, or a store error.
pub fn read_file(store: &Store, step: u64, entry: &FileEntry) -> Result<Bytes, CheckpointError> {
    let name = format!("{}/{}", folder(step), entry.name);
    let contents = store.get(&name)?;
    entry.compare(&FileEntry::of(&entry.name, &contents), &store.url_of(&name))?;
    Ok(contents)
}

/// Maps one file of a checkpoint in a local store into memory and compares it with its manifest entry.
///
/// # Errors
/// As [`read_file`].
pub fn map_file(store: &Store, step: u64, entry: &FileEntry) -> Result<Mmap, CheckpointError> {
    let name = format!("{}/{}", folder(step), entry.name);
    let path = store.local_path(&name).unwrap_or_else(|| PathBuf::from(&name));
    let mapped = File::open(&path).and_then(|file| {
        // SAFETY: nobody changes a file of a checkpoint once its manifest is written; runs on the same folder are
        // kept away by the lease. A file that shrinks all the same ends this process (SIGBUS), as a failing disk would.
        unsafe { Mmap::map(&file) }
    });
    let mapped = mapped.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => StoreError::Missing { url: store.url_of(&name) },
        _ => StoreError::File { path, source },
    })?;
    entry.compare(&FileEntry::of(&entry.name, &mapped), &store.url_of(&name))?;
    Ok(mapped)
}

/// Compares all files of a checkpoint in a local store with its manifest, which is returned.
///
/// # Errors
/// As [`read_file`].
pub fn verify(store: &Store, step: u64) -> Result<Manifest, CheckpointError> {
    let manifest = read(store, step)?;
    for entry in &manifest.files {
        map_file(store, step, entry)?;
    }
    Ok(manifest)
}

/// A step's folder within a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The step.
    pub step: u64,
    /// True if it has a manifest.
    pub committed: bool,
}

/// The checkpoints of a run, finished or not, in ascending order.
///
/// # Errors
/// What the store says.
pub fn listed(store: &Store) -> Result<Vec<Listed>, StoreError> {
    let mut steps = BTreeMap::new();
    for object in store.list("")? {
        let Some((folder, name)) = object.name.split_once('/') else { continue };
        if let Some(step) = step_of(folder) {
            *steps.entry(step).or_insert(false) |= name == MANIFEST;
        }
    }
    Ok(steps.into_iter().map(|(step, committed)| Listed { step, committed }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_name_steps() {
        assert_eq!(folder(12000), "step-00012000");
        for step in [0, 7, 123_456_789] {
            assert_eq!(step_of(&folder(step)), Some(step));
        }
        for other in ["step-1", "step-0000000x", "steps", "tmp"] {
            assert_eq!(step_of(other), None, "{other}");
        }
    }
}
