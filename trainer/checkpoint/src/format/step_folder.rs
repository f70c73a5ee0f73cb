//! The folder of a step: whether this program has made it, and deleting what it has put there.
//!
//! A run's folder may hold more than checkpoints: links to checkpoints that were moved to another disk, pictures that
//! were sampled beside the weights, folders of other programs. So a step's folder is only touched when it is proven to
//! be a checkpoint of this program, and only files of the names that a checkpoint has are deleted in it. The proof is
//! its manifest, its state, or the mark `unfinished.json`, which is the first thing written to a folder and the last
//! thing deleted.

use std::{io, path::Path};

use arinar_store::{Store, StoreError, unfinished_of};

use super::{
    CheckpointError, State,
    manifest::{self, MANIFEST, STATE, folder},
    shard::{KINDS, rank_of},
    snapshot::disk_error,
};

/// Name of the file that says that a checkpoint is being written to its folder, or deleted from it.
pub(super) const UNFINISHED: &str = "unfinished.json";
/// How the names of the markers of uploaded files begin.
pub(super) const UPLOADED: &str = "uploaded";

/// Makes room for the files of a new checkpoint: an older one of that step goes.
///
/// # Errors
/// [`CheckpointError::ForeignFolder`] if files of somebody else are in the way, or errors of the store.
pub(super) fn clear(store: &Store, step: u64) -> Result<(), CheckpointError> {
    delete(store, step)?;
    check_free(store, step)
}

/// Marks a step's folder as one of this program, before anything else is written there.
///
/// # Errors
/// Errors of the store.
pub(super) fn mark_unfinished(store: &Store, step: u64) -> Result<(), StoreError> {
    let text = format!("{{\"writer\": \"arinar-trainer {}\"}}\n", env!("CARGO_PKG_VERSION"));
    store.put(&format!("{}/{UNFINISHED}", folder(step)), text.into_bytes())
}

/// Takes the mark off a folder whose manifest is written.
///
/// # Errors
/// Errors of the store.
pub(super) fn unmark(store: &Store, step: u64) -> Result<(), StoreError> {
    store.delete(&format!("{}/{UNFINISHED}", folder(step)))
}

/// Whether a checkpoint has files of this name, finished or not.
pub(super) fn is_checkpoint_file(name: &str) -> bool {
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

/// Whether the folder of a step was made by this program: its manifest or its state is one of a checkpoint, or it has
/// the mark of an unfinished one. A link in its place was not.
///
/// # Errors
/// Errors of the store.
pub(super) fn is_ours(store: &Store, step: u64) -> Result<bool, StoreError> {
    let folder = folder(step);
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
        Ok(state) => Ok(serde_json::from_slice::<State>(&state).is_ok()),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes the checkpoint of a step, whole or unfinished. A folder that this program has not made stays as it is, and
/// so do other files in one that it has made.
///
/// The manifest goes first, so that a checkpoint is whole or none.
///
/// # Errors
/// Errors of the store.
pub(super) fn delete(store: &Store, step: u64) -> Result<(), StoreError> {
    if !is_ours(store, step)? {
        return Ok(());
    }
    let folder = folder(step);
    let manifest = format!("{folder}/{MANIFEST}");
    if store.exists(&manifest)? {
        // If this process is killed now, the mark still proves whose the remaining files are.
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
        // Somebody keeps something else there.
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

/// Makes sure that the run can save the steps after `step`: no files of somebody else are in the way.
///
/// # Errors
/// [`CheckpointError::ForeignFolder`] names the first folder in which there are some.
pub(super) fn check_later_steps(store: &Store, step: u64) -> Result<(), CheckpointError> {
    for entry in manifest::listed(store)?.into_iter().filter(|entry| entry.step > step) {
        if !is_ours(store, entry.step)? {
            check_free(store, entry.step)?;
        }
    }
    Ok(())
}

/// Nothing in the folder has the name of a checkpoint's file, and no link leads elsewhere.
fn check_free(store: &Store, step: u64) -> Result<(), CheckpointError> {
    let folder = folder(step);
    let link = store.local_path(&folder).is_some_and(|path| !is_plain_folder(&path));
    let in_the_way = |name: &str| name.strip_prefix('/').is_some_and(is_checkpoint_file);
    let files = store.list(&folder)?;
    if link || files.iter().any(|object| object.name.strip_prefix(&folder).is_some_and(in_the_way)) {
        return Err(CheckpointError::ForeignFolder { url: store.url_of(&folder) });
    }
    Ok(())
}

/// Not a link to one. A folder that is not there is as good as a plain one.
fn is_plain_folder(path: &Path) -> bool {
    std::fs::symlink_metadata(path).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |facts| facts.is_dir())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::checkpoint::{FORMAT_VERSION, FileEntry, Manifest};

    const FILES: [&str; 4] = [
        "state.json",
        "model-00001-of-00002.safetensors",
        "ema-00002-of-00002.safetensors",
        "uploaded-00001-of-00002.json",
    ];

    /// A run's folder with a checkpoint of a step, in which a person keeps two things.
    fn run_with(step: u64, committed: bool) -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path().to_str().unwrap()).unwrap();
        let place = |name: &str| format!("{}/{name}", folder(step));
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
            // Now it is nobody's checkpoint any more, but what is left is not in the way of a new one.
            assert!(!is_ours(&store, 7).unwrap());
            check_later_steps(&store, 0).unwrap();
            clear(&store, 7).unwrap();
            mark_unfinished(&store, 7).unwrap();
            assert!(is_ours(&store, 7).unwrap());
        }
    }

    #[test]
    fn a_folder_of_checkpoint_files_alone_goes() {
        let (root, store) = run_with(7, true);
        std::fs::remove_file(root.path().join("step-00000007/notes.txt")).unwrap();
        std::fs::remove_dir_all(root.path().join("step-00000007/samples")).unwrap();
        delete(&store, 7).unwrap();
        assert!(!root.path().join("step-00000007").exists());
        delete(&store, 7).unwrap();
    }

    #[test]
    fn what_this_program_has_not_made_stays_and_is_not_written_to() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path().join("run").to_str().unwrap()).unwrap();
        // The shards of a model as Hugging Face names them, with and without a manifest of something else.
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
                (Some(said), Some(foreign)) => assert!(said.contains(&folder(foreign)), "{said}"),
                (said, foreign) => assert!(said.is_none() && foreign.is_none(), "{said:?} {foreign:?}"),
            }
        }
    }

    #[test]
    fn names_of_checkpoint_files() {
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
