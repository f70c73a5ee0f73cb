//! The folder of a step: whether it was created by this program, and deleting it.
//!
//! The folder of a run may hold more than checkpoints: links to checkpoints that were moved to another disk, pictures that
//! were sampled next to the weights, folders of other programs. Therefore, the folder of a step is changed only if it is
//! proven to be a checkpoint of this program, and only files with the names of checkpoint files are deleted in it. The proof
//! is its manifest, its state, or the marker `unfinished.json`, which is the first file written to a folder and the last one
//! deleted.

use std::{io, path::Path};

use arinar_store::{Store, StoreError, unfinished_of};
use serde::de::IgnoredAny;

use super::{
    manifest::{self, MANIFEST, STATE, step_folder_name},
    tensor_files::{KINDS, rank_of},
};
use crate::{
    error::{CheckpointError, disk_error},
    state::CheckpointState,
};

/// Name of the marker in a folder to which a checkpoint is being written, or from which one is being deleted.
pub(crate) const UNFINISHED: &str = "unfinished.json";
/// Prefix of the names of upload markers, see [`crate::remote::upload_job::RankFiles::marker`].
pub(crate) const UPLOADED: &str = "uploaded";

/// Prepares the folder of a step for a new checkpoint by deleting an older one.
///
/// # Errors
/// Returns [`CheckpointError::ForeignFolder`] if files of another program have the names of checkpoint files, or an error
/// of the store.
pub(crate) fn clear(store: &Store, step: u64) -> Result<(), CheckpointError> {
    delete(store, step)?;
    check_free(store, step)
}

/// Marks the folder of a step as created by this program, before anything else is written to it.
///
/// # Errors
/// Returns an error if the store cannot be written.
pub(crate) fn mark_unfinished(store: &Store, step: u64) -> Result<(), StoreError> {
    let text = format!("{{\"writer\": \"arinar-trainer {}\"}}\n", env!("CARGO_PKG_VERSION"));
    store.put(&format!("{}/{UNFINISHED}", step_folder_name(step)), text.into_bytes())
}

/// Removes the marker from a folder whose manifest is written.
///
/// # Errors
/// Returns an error if the store cannot be written.
pub(crate) fn unmark(store: &Store, step: u64) -> Result<(), StoreError> {
    store.delete(&format!("{}/{UNFINISHED}", step_folder_name(step)))
}

/// Returns whether a file of a checkpoint, finished or not, can have this name.
pub(crate) fn is_checkpoint_file(name: &str) -> bool {
    let name = unfinished_of(name).unwrap_or(name);
    let kind = |kinds: &[&str], ending: &str| {
        let stem = name.strip_suffix(ending);
        stem.and_then(|stem| stem.split_once('-')).is_some_and(|(kind, _)| kinds.contains(&kind))
    };
    let tensors = || kind(&KINDS, ".safetensors") && rank_of(name).is_some();
    let marker = || {
        let as_tensors = name.replacen(".json", ".safetensors", 1);
        kind(&[UPLOADED], ".json") && rank_of(&as_tensors).is_some()
    };
    [MANIFEST, STATE, UNFINISHED].contains(&name) || tensors() || marker()
}

/// Returns whether the folder of a step was created by this program: it has the manifest or the state of a checkpoint, or
/// the marker of an unfinished one. A symbolic link in its place was not.
///
/// # Errors
/// Returns an error if the store cannot be read.
pub(crate) fn is_ours(store: &Store, step: u64) -> Result<bool, StoreError> {
    let folder = step_folder_name(step);
    if store.local_path(&folder).is_some_and(|path| !is_plain_folder(&path)) {
        return Ok(false);
    }
    if store.exists(&format!("{folder}/{UNFINISHED}"))? {
        return Ok(true);
    }
    match manifest::read(store, step) {
        Ok(manifest) if manifest.step == step => return Ok(true),
        Err(CheckpointError::Store(error)) if !error.is_missing() => return Err(error),
        _ => {}
    }
    match store.get(&format!("{folder}/{STATE}")) {
        Ok(state) => Ok(serde_json::from_slice::<CheckpointState<IgnoredAny>>(&state).is_ok()),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes the checkpoint of a step, complete or unfinished. Leaves folders that this program has not created and other
/// files in folders that it has created.
///
/// The manifest is deleted first, so that a checkpoint is either complete or not a checkpoint.
///
/// # Errors
/// Returns an error if the store cannot be read or written.
pub(crate) fn delete(store: &Store, step: u64) -> Result<(), StoreError> {
    if !is_ours(store, step)? {
        return Ok(());
    }
    let folder = step_folder_name(step);
    let manifest = format!("{folder}/{MANIFEST}");
    if store.exists(&manifest)? {
        // If this process is killed now, the marker still proves that the remaining files are those of a checkpoint.
        mark_unfinished(store, step)?;
        store.delete(&manifest)?;
    }
    match store.local_path(&folder) {
        Some(path) => delete_files(&path).map_err(|error| disk_error(&path, error)),
        None => delete_objects(store, &folder),
    }
}

fn delete_files(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| is_checkpoint_file(name) && name != UNFINISHED);
        if ours && entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    match std::fs::remove_file(folder.join(UNFINISHED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match std::fs::remove_dir(folder) {
        // The folder holds other files.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => removed,
    }
}

fn delete_objects(store: &Store, folder: &str) -> Result<(), StoreError> {
    for object in store.list(folder)? {
        let name = object.name.strip_prefix(folder).and_then(|name| name.strip_prefix('/'));
        if name.is_some_and(|name| is_checkpoint_file(name) && name != UNFINISHED) {
            store.delete(&object.name)?;
        }
    }
    store.delete(&format!("{folder}/{UNFINISHED}"))
}

/// Checks that no files of other programs are in the folders of steps after `step`, which the run will save.
///
/// # Errors
/// Returns [`CheckpointError::ForeignFolder`] for the first folder with such files, or an error of the store.
pub(crate) fn check_later_steps(store: &Store, step: u64) -> Result<(), CheckpointError> {
    for entry in manifest::list_steps(store)?.into_iter().filter(|entry| entry.step > step) {
        if !is_ours(store, entry.step)? {
            check_free(store, entry.step)?;
        }
    }
    Ok(())
}

/// Checks that no file in the folder has the name of a checkpoint file, and that the folder is not a symbolic link.
fn check_free(store: &Store, step: u64) -> Result<(), CheckpointError> {
    let folder = step_folder_name(step);
    let link = store.local_path(&folder).is_some_and(|path| !is_plain_folder(&path));
    let conflicts = |name: &str| name.strip_prefix('/').is_some_and(is_checkpoint_file);
    let files = store.list(&folder)?;
    if link || files.iter().any(|object| object.name.strip_prefix(&folder).is_some_and(conflicts)) {
        return Err(CheckpointError::ForeignFolder { url: store.url_of(&folder) });
    }
    Ok(())
}

/// Returns whether the path is a folder and not a symbolic link, or does not exist.
fn is_plain_folder(path: &Path) -> bool {
    std::fs::symlink_metadata(path).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |facts| facts.is_dir())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::format::manifest::{FORMAT_VERSION, FileEntry, Manifest};

    const FILES: [&str; 4] = [
        "state.json",
        "model-00001-of-00002.safetensors",
        "ema-00002-of-00002.safetensors",
        "uploaded-00001-of-00002.json",
    ];

    /// Creates the folder of a run with a checkpoint, in whose folder a user keeps two other files.
    fn run_with(step: u64, committed: bool) -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path().to_str().unwrap()).unwrap();
        let place = |name: &str| format!("{}/{name}", step_folder_name(step));
        if committed {
            let files = FILES.map(|name| FileEntry::of(name, name.as_bytes())).to_vec();
            let manifest = Manifest { format_version: FORMAT_VERSION, step, files };
            store.put(&place(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
        } else {
            mark_unfinished(&store, step).unwrap();
        }
        for name in FILES.into_iter().chain(["notes.txt", "samples/grid.png"]) {
            store.put(&place(name), name.as_bytes().to_vec()).unwrap();
        }
        std::fs::write(root.path().join(place("state.json#1")), "half written").unwrap();
        (root, store)
    }

    fn names(store: &Store) -> Vec<String> {
        store.list("").unwrap().into_iter().map(|object| object.name).collect()
    }

    #[test]
    fn only_files_of_the_checkpoint_are_deleted() {
        for committed in [true, false] {
            let (root, store) = run_with(7, committed);
            std::os::unix::fs::symlink(
                "/etc/hostname",
                root.path().join("step-00000007/optimizer-00001-of-00002.safetensors"),
            )
            .unwrap();
            delete(&store, 7).unwrap();
            std::fs::remove_file(root.path().join("step-00000007/optimizer-00001-of-00002.safetensors")).unwrap();
            assert_eq!(names(&store), ["step-00000007/notes.txt", "step-00000007/samples/grid.png"]);
            let left = std::fs::read_dir(root.path().join("step-00000007")).unwrap().count();
            assert_eq!(left, 2, "unfinished files are left");
            // The folder is no longer a checkpoint, and the remaining files do not conflict with a new one.
            assert!(!is_ours(&store, 7).unwrap());
            check_later_steps(&store, 0).unwrap();
            clear(&store, 7).unwrap();
            mark_unfinished(&store, 7).unwrap();
            assert!(is_ours(&store, 7).unwrap());
        }
    }

    #[test]
    fn a_folder_with_only_checkpoint_files_is_removed() {
        let (root, store) = run_with(7, true);
        std::fs::remove_file(root.path().join("step-00000007/notes.txt")).unwrap();
        std::fs::remove_dir_all(root.path().join("step-00000007/samples")).unwrap();
        delete(&store, 7).unwrap();
        assert!(!root.path().join("step-00000007").exists());
        delete(&store, 7).unwrap();
    }

    #[test]
    fn folders_of_other_programs_are_neither_deleted_nor_written_to() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path().join("run").to_str().unwrap()).unwrap();
        // Shards of a model in the naming of Hugging Face, without and with the manifest of another program.
        store.put("step-00000003/model-00001-of-00002.safetensors", b"weights".to_vec()).unwrap();
        store.put("step-00000004/model-00001-of-00002.safetensors", b"weights".to_vec()).unwrap();
        store.put("step-00000004/manifest.json", br#"{"name": "an app"}"#.to_vec()).unwrap();
        store.put("step-00000004/state.json", br#"{"step": 4}"#.to_vec()).unwrap();
        // A checkpoint that was moved to another disk, with a link in its place.
        let (archive, moved) = run_with(5, true);
        std::os::unix::fs::symlink(archive.path().join("step-00000005"), root.path().join("run/step-00000005"))
            .unwrap();
        let before = (names(&store), names(&moved));
        for step in 3..=5 {
            assert!(!is_ours(&store, step).unwrap());
            delete(&store, step).unwrap();
            assert!(matches!(clear(&store, step), Err(CheckpointError::ForeignFolder { .. })));
        }
        assert_eq!((names(&store), names(&moved)), before);
        for (step, foreign) in [(0, Some(3)), (3, Some(4)), (4, Some(5)), (5, None)] {
            let said = check_later_steps(&store, step).err().map(|error| error.to_string());
            match (said, foreign) {
                (Some(said), Some(foreign)) => assert!(said.contains(&step_folder_name(foreign)), "{said}"),
                (said, foreign) => assert!(said.is_none() && foreign.is_none(), "{said:?} {foreign:?}"),
            }
        }
    }

    #[test]
    fn names_of_checkpoint_files_are_recognized() {
        for name in
            FILES.into_iter().chain([MANIFEST, UNFINISHED, "manifest.json#3", "optimizer-00003-of-00003.safetensors"])
        {
            assert!(is_checkpoint_file(name), "{name}");
        }
        for name in [
            "notes.txt",
            "model.safetensors",
            "weights-00001-of-00002.safetensors",
            "model-00003-of-00002.safetensors",
            "model-00001-of-00002.json",
            "uploaded-00001-of-00002.safetensors",
            "uploaded-00001-of-00002.json.json",
            "notes.txt#1",
        ] {
            assert!(!is_checkpoint_file(name), "{name}");
        }
    }
}
