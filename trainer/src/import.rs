//! A new run that begins with somebody's weights: an official `checkpoint-last.pth`, or an export.
//!
//! Rank 0 alone reads the file; the others get the weights from it, and of the averages their own part.

use std::collections::BTreeMap;

use arinar_model::weights::WeightsFile;
use arinar_store::{StoreError, object::LocalCopy};
use tch::Tensor;

use crate::{
    clip,
    collective::{Collective, agree},
    ema::Ema,
    exit::Stop,
    parameters::FlatParameters,
};

/// What the weights go into.
pub struct ImportInto<'a> {
    /// Weights, the same on all ranks afterwards.
    pub parameters: &'a FlatParameters,
    /// Averages of this rank's part.
    pub ema: &'a Ema,
    /// Tensors of the state dict that are not trained.
    pub buffers: &'a [(String, Tensor)],
}

/// Reads the weights of `url` and, where it has them, their averages; else the averages begin at the weights. The
/// optimizer is left as it is: new. Returns what to tell the user. All ranks call it together.
///
/// # Errors
/// A file that is not there, not whole, or of another model; all ranks end together.
pub fn import(collective: &dyn Collective, url: &str, into: &ImportInto<'_>) -> Result<String, Stop> {
    let averages = if collective.rank() == 0 { into.read(url) } else { Ok(None) };
    let averages = agree(collective, averages)?;
    let mut values = into.parameters.values().shallow_clone();
    collective.broadcast(&mut values, 0)?;
    for (_, buffer) in into.buffers {
        let mut flat = buffer.contiguous().view(-1);
        collective.broadcast(&mut flat, 0)?;
        buffer.shallow_clone().copy_(&flat.view_as(buffer));
    }
    for (rank, part) in into.parameters.parts(collective.world()).iter().enumerate() {
        // On other ranks than 0 what lies in it does not matter: it is overwritten.
        let mut piece = part.of(averages.as_ref().unwrap_or(&values)).copy();
        collective.broadcast(&mut piece, 0)?;
        if rank == collective.rank() {
            into.ema.values().shallow_clone().copy_(&piece);
        }
    }
    let found =
        if averages.is_some() { "model and model_ema" } else { "model; its averages begin at the same weights" };
    Ok(format!("weights: {url} ({found}; the optimizer is new)"))
}

impl ImportInto<'_> {
    /// Fills the parameters; returns the averages of all of them, laid out like them, if the file has any.
    fn read(&self, url: &str) -> Result<Option<Tensor>, Stop> {
        let local = LocalCopy::fetch(url).map_err(|error| match error {
            StoreError::Url { .. } | StoreError::Missing { .. } => Stop::configuration(error),
            _ => Stop::failure(error),
        })?;
        let file = WeightsFile::open(local.path()).map_err(Stop::configuration)?;
        file.fill_model(&self.named(self.parameters.values(), |buffer| buffer.shallow_clone()))
            .map_err(Stop::configuration)?;
        let averages = self.parameters.values().zeros_like();
        let has = file.fill_ema(&self.named(&averages, Tensor::copy)).map_err(Stop::configuration)?;
        for (what, flat) in [("weights", self.parameters.values()), ("averages", &averages)] {
            if !clip::grad_norm(flat).is_finite() {
                return Err(Stop::Configuration(format!("the {what} in {url} are not finite; training needs others")));
            }
        }
        Ok(has.then_some(averages))
    }

    /// The whole state dict as views into a flat tensor, with its buffers.
    fn named(&self, flat: &Tensor, buffer: impl Fn(&Tensor) -> Tensor) -> BTreeMap<String, Tensor> {
        let parameters =
            self.parameters.slots().iter().map(|slot| (slot.name.clone(), self.parameters.view(flat, slot)));
        parameters.chain(self.buffers.iter().map(|(name, tensor)| (name.clone(), buffer(tensor)))).collect()
    }
}
