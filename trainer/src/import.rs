//! Importing the weights of a new run from an official `checkpoint-last.pth` or from an export.
//!
//! Rank 0 reads the file and broadcasts the weights. The other ranks keep their own part of the moving averages.

use std::collections::BTreeMap;

use arinar_model::{
    Arinar, ModelConfig,
    weights::{self, WeightsError, WeightsFile},
};
use arinar_store::{StoreError, object::LocalCopy};
use tch::{Device, Tensor, nn};

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
        let weights = ImportedFile::open(url)?;
        weights.fill_model(&self.named(self.parameters.values(), |buffer| buffer.shallow_clone()))?;
        let averages = self.parameters.values().zeros_like();
        let has = weights.fill_ema(&self.named(&averages, Tensor::copy))?;
        for (what, flat) in [("weights", self.parameters.values()), ("averages", &averages)] {
            check_finite(what, clip::grad_norm(flat), url)?;
        }
        Ok(has.then_some(averages))
    }

    /// Returns the whole state dict as views of a flat tensor, with its buffers.
    fn named(&self, flat: &Tensor, buffer: impl Fn(&Tensor) -> Tensor) -> BTreeMap<String, Tensor> {
        let parameters = self.parameters.slots().iter().map(|slot| (slot.name.clone(), slot.view(flat)));
        parameters.chain(self.buffers.iter().map(|(name, tensor)| (name.clone(), buffer(tensor)))).collect()
    }
}

/// Checks that the file at `url` can be imported into a model, which is created for this. Returns a description of the file.
///
/// # Errors
/// Returns the error with which [`import`] would end.
pub(crate) fn check(url: &str, model: &ModelConfig) -> Result<String, Stop> {
    let file = ImportedFile::open(url)?;
    let store = nn::VarStore::new(Device::Cpu);
    Arinar::new(&store.root(), model);
    let variables = weights::named(&store);
    let norm = |variables: &BTreeMap<String, Tensor>| -> f64 { variables.values().map(clip::grad_norm).sum() };
    file.fill_model(&variables)?;
    check_finite("weights", norm(&variables), url)?;
    let averages = file.fill_ema(&variables)?;
    check_finite("averages", norm(&variables), url)?;
    Ok(format!("{url} has the tensors of the model{}", if averages { " and their averages" } else { "" }))
}

fn check_finite(what: &str, norm: f64, url: &str) -> Result<(), Stop> {
    if norm.is_finite() {
        return Ok(());
    }
    Err(Stop::configuration(format!("the {what} in {url} are not finite; import other weights")))
}

/// The file to import, downloaded if it is in a store.
struct ImportedFile<'a> {
    url: &'a str,
    copy: LocalCopy,
    weights: WeightsFile,
}

impl<'a> ImportedFile<'a> {
    fn open(url: &'a str) -> Result<Self, Stop> {
        let copy = LocalCopy::fetch(url).map_err(|error| match error {
            StoreError::Missing { .. } | StoreError::Denied { .. } => Stop::configuration(error),
            error if error.is_configuration() => Stop::configuration(error),
            error => Stop::failure(error),
        })?;
        let weights = WeightsFile::open(copy.path()).map_err(|error| wrong(url, &copy, error))?;
        Ok(Self { url, copy, weights })
    }

    fn fill_model(&self, variables: &BTreeMap<String, Tensor>) -> Result<(), Stop> {
        self.weights.fill_model(variables).map_err(|error| wrong(self.url, &self.copy, error))
    }

    fn fill_ema(&self, variables: &BTreeMap<String, Tensor>) -> Result<bool, Stop> {
        self.weights.fill_ema(variables).map_err(|error| wrong(self.url, &self.copy, error))
    }
}

/// Converts an error in a file, which names the temporary file of a download.
fn wrong(url: &str, copy: &LocalCopy, error: WeightsError) -> Stop {
    match copy {
        LocalCopy::InPlace(_) => Stop::configuration(error),
        LocalCopy::Fetched(_) => Stop::configuration(format!("the copy of {url}: {error}")),
    }
}
