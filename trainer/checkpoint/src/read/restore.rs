//! Restoring a checkpoint into the tensors of a run of any world size.

use arinar_store::Store;
use safetensors::SafeTensors;
use serde::de::DeserializeOwned;
use tch::Tensor;

use super::{
    load::{parse, to_tensor},
    state_file::{damaged, read_state},
};
use crate::{
    error::CheckpointError,
    format::{
        manifest::{self, FileEntry, MANIFEST},
        tensor_files::MOMENTS,
    },
    layout::{Part, Slot, TensorSet},
    options::ModelIdentity,
    state::CheckpointState,
};

/// Reads the checkpoint of a step in a local store into the tensors of a run. Files are mapped rather than read, so that only
/// one parameter at a time is held in memory.
///
/// # Errors
/// Returns [`CheckpointError::OtherModel`] if the checkpoint holds another model, or [`CheckpointError::Damaged`].
pub(crate) fn restore<C: DeserializeOwned>(
    store: &Store,
    step: u64,
    model: &ModelIdentity,
    into: TensorSet<'_>,
) -> Result<CheckpointState<C>, CheckpointError> {
    let manifest = manifest::read(store, step)?;
    let state = read_state(store, &manifest, Some(model))?;
    let target = |kind, prefix, tensor, part: &Part| Target { kind, prefix, tensor, part: part.clone(), copied: 0 };
    let [first_moment, second_moment] = into.moments;
    let mut targets = [
        target("model-", "", into.parameters, &into.whole()),
        target("ema-", "", into.ema, into.part),
        target("optimizer-", MOMENTS[0], first_moment, into.part),
        target("optimizer-", MOMENTS[1], second_moment, into.part),
    ];
    for entry in &manifest.files {
        if !targets.iter().any(|target| target.is_in(entry)) {
            continue;
        }
        let contents = manifest::map_file(store, step, entry)?;
        let tensors = parse(store, step, entry, &contents)?;
        for target in targets.iter_mut().filter(|target| target.is_in(entry)) {
            target.copy(into.slots, &tensors).map_err(|what| damaged(store, step, &entry.name, what))?;
        }
    }
    if let Some(target) = targets.iter().find(|target| target.copied != target.part.slots.len()) {
        let (kind, copied, expected) = (target.kind, target.copied, target.part.slots.len());
        let what = format!("its {kind} files hold {copied} of {expected} parameters");
        return Err(damaged(store, step, MANIFEST, what));
    }
    Ok(state)
}

/// A flat tensor that is filled from the files of one kind.
struct Target<'a> {
    /// Prefix of the names of the files.
    kind: &'static str,
    /// Prefix of the names of the tensors.
    prefix: &'static str,
    tensor: &'a Tensor,
    /// The parameters in `tensor`.
    part: Part,
    /// Number of parameters copied so far.
    copied: usize,
}

impl Target<'_> {
    fn is_in(&self, entry: &FileEntry) -> bool {
        entry.name.starts_with(self.kind)
    }

    /// Copies all parameters of the part that a file contains.
    fn copy(&mut self, slots: &[Slot], tensors: &SafeTensors<'_>) -> Result<(), String> {
        for slot in &slots[self.part.slots.clone()] {
            let Ok(view) = tensors.tensor(&format!("{}{}", self.prefix, slot.name)) else { continue };
            let stored = to_tensor(&view)?;
            if stored.size() != slot.shape {
                return Err(format!("{} has shape {:?}, the model wants {:?}", slot.name, stored.size(), slot.shape));
            }
            self.part.view(self.tensor, slot).copy_(&stored);
            self.copied += 1;
        }
        Ok(())
    }
}
