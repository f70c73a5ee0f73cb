//! Importing the weights of a new run from an official `checkpoint-last.pth` or from an export.
//!
//! Rank 0 reads the file and broadcasts the weights. The other ranks keep their own part of the moving averages.

use std::collections::BTreeMap;

use arinar_model::weights::{WeightsError, WeightsFile};
use arinar_store::{StoreError, object::LocalCopy};
use tch::Tensor;

use crate::{clip, ema::Ema, parameters::FlatParameters, stop::Stop};
use arinar_collective::{Collective, agree};

/// The tensors that weights are imported into.
pub(crate) struct ImportInto<'a> {
    /// Weights, which are equal on all ranks afterwards.
    pub parameters: &'a FlatParameters,
    /// Moving averages of this rank's part.
    pub ema: &'a Ema,
    /// Tensors of the state dict that are not trained.
    pub buffers: &'a [(String, Tensor)],
}

/// Imports the weights of the file at `url` and their moving averages. If the file has no averages, they start at the weights.
/// The optimizer is not changed. Returns a message for the user. All ranks call it together.
///
/// # Errors
/// Returns an error on all ranks if the file is missing, damaged, or of another model.
pub(crate) fn import(collective: &dyn Collective, url: &str, into: &ImportInto<'_>) -> Result<String, Stop> {
    let averages = if collective.rank() == 0 { into.read(url) } else { Ok(None) };
    let averages = agree(collective, averages)?;
    let mut values = into.parameters.values().shallow_clone();
    collective.broadcast(&mut values, 0)?;
    for (_, buffer) in into.buffers {
        let mut flat = buffer.contiguous().view(-1);
        collective.broadcast(&mut flat, 0)?;
        buffer.shallow_clone().copy_(&flat.view_as(buffer));
    }
    for (rank, part) in into.parameters.parts(collective.world_size()).iter().enumerate() {
        // On ranks other than 0 its contents are overwritten.
        let mut piece = part.of(averages.as_ref().unwrap_or(&values)).copy();
        collective.broadcast(&mut piece, 0)?;
        if rank == collective.rank() {
            into.ema.values().shallow_clone().copy_(&piece);
        }
    }
    let found = if averages.is_some() {
        "model and model_ema"
    } else {
        "model; its moving averages start from the same weights"
    };
    Ok(format!("weights: {url} ({found}; the optimizer is new)"))
}

impl ImportInto<'_> {
    /// Fills the parameters. Returns the averages of all parameters in the same layout, if the file has any.
    fn read(&self, url: &str) -> Result<Option<Tensor>, Stop> {
        let local = LocalCopy::fetch(url).map_err(|error| match error {
            StoreError::Missing { .. } | StoreError::Denied { .. } => Stop::configuration(error),
            error if error.is_configuration() => Stop::configuration(error),
            error => Stop::failure(error),
        })?;
        let wrong = |error: WeightsError| match &local {
            LocalCopy::InPlace(_) => Stop::configuration(error),
            // The error names the temporary file.
            LocalCopy::Fetched(_) => Stop::configuration(format!("the copy of {url}: {error}")),
        };
        let file = WeightsFile::open(local.path()).map_err(wrong)?;
        file.fill_model(&self.named(self.parameters.values(), |buffer| buffer.shallow_clone())).map_err(wrong)?;
        let averages = self.parameters.values().zeros_like();
        let has = file.fill_ema(&self.named(&averages, Tensor::copy)).map_err(wrong)?;
        for (what, flat) in [("weights", self.parameters.values()), ("averages", &averages)] {
            if !clip::grad_norm(flat).is_finite() {
                return Err(Stop::configuration(format!("the {what} in {url} are not finite; import other weights")));
            }
        }
        Ok(has.then_some(averages))
    }

    /// Returns the whole state dict as views of a flat tensor, with its buffers.
    fn named(&self, flat: &Tensor, buffer: impl Fn(&Tensor) -> Tensor) -> BTreeMap<String, Tensor> {
        let parameters = self.parameters.slots().iter().map(|slot| (slot.name.clone(), slot.view(flat)));
        parameters.chain(self.buffers.iter().map(|(name, tensor)| (name.clone(), buffer(tensor)))).collect()
    }
}
