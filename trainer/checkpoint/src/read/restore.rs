//! Reading a checkpoint back into a run, at any world size.

use arinar_store::Store;
use safetensors::SafeTensors;
use tch::Tensor;

use super::{
    CheckpointError, State,
    load::{damaged, parse, read_state, to_tensor},
    manifest::{self, FileEntry, MANIFEST},
    shard::MOMENTS,
};
use crate::{
    config::TrainConfig,
    ema::Ema,
    optimizer::AdamW,
    parameters::{FlatParameters, Part},
};

/// What a checkpoint is restored into.
pub struct RestoreInto<'a> {
    /// Weights.
    pub parameters: &'a FlatParameters,
    /// Averages.
    pub ema: &'a Ema,
    /// Moments.
    pub optimizer: &'a mut AdamW,
}

/// Reads the checkpoint of a step in a local store into the tensors of a run with this configuration. Files are mapped
/// rather than read, so that memory holds one parameter at a time.
///
/// # Errors
/// [`CheckpointError::OtherModel`], or a damaged file.
pub fn restore(
    store: &Store,
    step: u64,
    config: &TrainConfig,
    into: RestoreInto<'_>,
) -> Result<State, CheckpointError> {
    let manifest = manifest::read(store, step)?;
    let state = read_state(store, &manifest, Some(config))?;
    let part = into.optimizer.part().clone();
    let target = |kind, prefix, tensor, part: &Part| Target { kind, prefix, tensor, part: part.clone(), copied: 0 };
    let mut targets = [
        target("model-", "", into.parameters.values(), &into.parameters.whole()),
        target("ema-", "", into.ema.values(), &part),
        target("optimizer-", MOMENTS[0], into.optimizer.first_moment(), &part),
        target("optimizer-", MOMENTS[1], into.optimizer.second_moment(), &part),
    ];
    for entry in &manifest.files {
        if !targets.iter().any(|target| target.takes(entry)) {
            continue;
        }
        let contents = manifest::map_file(store, step, entry)?;
        let tensors = parse(store, step, entry, &contents)?;
        for target in targets.iter_mut().filter(|target| target.takes(entry)) {
            target.copy(into.parameters, &tensors).map_err(|what| damaged(store, step, &entry.name, what))?;
        }
    }
    if let Some(target) = targets.iter().find(|target| target.copied != target.part.slots.len()) {
        let (kind, copied, expected) = (target.kind, target.copied, target.part.slots.len());
        let what = format!("its {kind} files hold {copied} of {expected} parameters");
        return Err(damaged(store, step, MANIFEST, what));
    }
    into.optimizer.set_steps(state.optimizer_steps);
    Ok(state)
}

/// A tensor of parameters, or of a part of them, that a checkpoint's files fill.
struct Target<'a> {
    kind: &'static str,
    prefix: &'static str,
    tensor: &'a Tensor,
    part: Part,
    copied: usize,
}

impl Target<'_> {
    fn takes(&self, entry: &FileEntry) -> bool {
        entry.name.starts_with(self.kind)
    }

    /// Copies every parameter of the part that a file has.
    fn copy(&mut self, parameters: &FlatParameters, tensors: &SafeTensors<'_>) -> Result<(), String> {
        for slot in &parameters.slots()[self.part.slots.clone()] {
            let Ok(view) = tensors.tensor(&format!("{}{}", self.prefix, slot.name)) else { continue };
            let stored = to_tensor(&view)?;
            if stored.size() != slot.shape {
                return Err(format!("{} has shape {:?}, the model wants {:?}", slot.name, stored.size(), slot.shape));
            }
            parameters.view_of_part(self.tensor, &self.part, slot).copy_(&stored);
            self.copied += 1;
        }
        Ok(())
    }
}
