//! Downloading a checkpoint to the spool.

use std::{fs::File, io, path::Path};

use arinar_store::{Store, StoreError};

use crate::{
    error::{CheckpointError, disk_error},
    format::{
        hash::HashingWriter,
        manifest::{self, FileEntry, MANIFEST, Manifest, step_folder_name},
        step_folder,
    },
    read::state_file::damaged,
    remote::spool::Spool,
};

/// Downloads a checkpoint to the spool's folder for downloads, and verifies it.
///
/// # Errors
/// Returns [`CheckpointError::Damaged`] with the URL of the damaged file, or an error of the store or the disk.
pub(crate) fn download(store: &Store, step: u64, spool: &Spool) -> Result<(), CheckpointError> {
    spool.delete_downloads()?;
    let target = spool.downloads()?;
    let manifest = manifest::read(store, step)?;
    let folder = step_folder_name(step);
    step_folder::mark_unfinished(&target, step)?;
    for entry in &manifest.files {
        let name = format!("{folder}/{}", entry.name);
        // A manifest from outside must not name a file elsewhere.
        let is_plain = !entry.name.is_empty() && !entry.name.contains(['/', '\\']) && !entry.name.starts_with('.');
        let Some(path) = target.local_path(&name).filter(|_| is_plain) else {
            return Err(damaged(store, step, MANIFEST, format!("it names the file {:?}", entry.name)));
        };
        download_file(store, &name, entry, &path)?;
    }
    write_manifest(&target, &manifest)
}

fn download_file(store: &Store, name: &str, entry: &FileEntry, path: &Path) -> Result<(), CheckpointError> {
    let failed = |error| disk_error(path, error);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let file = File::create_new(path).map_err(failed)?;
    store.download(name, entry.bytes, &file)?;
    drop(file);
    let found = entry_of(entry, path).map_err(failed)?;
    entry.compare(&found, &store.url_of(name))
}

/// Reads a file back and returns its entry.
fn entry_of(entry: &FileEntry, path: &Path) -> io::Result<FileEntry> {
    let mut hasher = HashingWriter::new(io::sink());
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hasher.finish(&entry.name).1)
}

fn write_manifest(store: &Store, manifest: &Manifest) -> Result<(), CheckpointError> {
    let name = format!("{}/{MANIFEST}", step_folder_name(manifest.step));
    let bytes = serde_json::to_vec_pretty(manifest);
    let bytes = bytes.map_err(|source| StoreError::Other { url: store.url_of(&name), source: source.into() })?;
    Ok(store.put(&name, bytes)?)
}
