//! The model of a run for sampling.

use arinar_checkpoint::LoadedRun;
use arinar_model::{Arinar, Precision, weights};
use tch::{Device, nn};

use crate::{config::TrainConfig, stop::Stop};

/// Creates the model of a run with its EMA weights, for forward passes only.
///
/// # Errors
/// Returns an error if a tensor is missing from the checkpoint or has another shape.
pub(crate) fn frozen_model(run: &LoadedRun<TrainConfig>, precision: Precision, device: Device) -> Result<Arinar, Stop> {
    let mut store = nn::VarStore::new(Device::Cpu);
    let mut model = Arinar::new(&store.root(), &run.config.model);
    for (name, variable) in weights::named(&store) {
        let shape = variable.size();
        let Some(trained) = run.tensors.get(&name).filter(|trained| trained.size() == shape) else {
            return Err(Stop::failure(format!("the checkpoint of step {} lacks {name} of shape {shape:?}", run.step)));
        };
        tch::no_grad(|| variable.shallow_clone().f_copy_(trained)).map_err(Stop::failure)?;
    }
    store.freeze();
    store.set_device(device);
    model.set_precision(precision);
    // Hundreds of steps multiply by the same weights, so they are cast only once.
    model.freeze();
    Ok(model)
}
