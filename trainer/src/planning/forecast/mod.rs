//! `--plan`: forecasts what a run needs and how long it takes.
//!
//! [`Forecaster`] computes the figures from formulas without input or output, one file per formula. `rehearsal` measures the
//! time of a step.

mod activations;
mod checkpoints;
mod egress;
mod eta;
mod figures;
mod forecaster;
mod gpus;
mod memory;
mod processor;
mod rehearsal;
mod report;
mod step_budget;
mod unsupported;

use arinar_collective::{Reduction, agree, machine::memory as host_memory};
use arinar_data::Reporter;

pub use self::memory::MEMORY_TOLERANCE;
pub(crate) use self::{
    checkpoints::{CheckpointForecast, checkpoint_bytes},
    memory::{MemoryEstimate, largest_micro},
    processor::Processor,
    unsupported::NO_EVALUATION,
};

use self::{forecaster::Forecaster, rehearsal::rehearse};
use crate::{
    batch_source::Data,
    config::{LogFormat, TrainConfig},
    rank_context::RankContext,
    stop::Stop,
};

/// Rehearses some steps, and prints the forecast on rank 0. All ranks call it together. Writes no files.
///
/// # Errors
/// Returns an error if the configuration or the dataset cannot be used, or if the rehearsal fails.
pub fn plan(context: RankContext<'_>, config: &TrainConfig) -> Result<(), Stop> {
    let collective = context.collective;
    let batch = config.share_batch(collective.world_size(), context.full_world_size());
    let batch = agree(collective, batch.map_err(Stop::configuration))?;
    let data = if collective.rank() == 0 { Data::open(config).map(Some) } else { Ok(None) };
    let data = agree(collective, data)?;
    let mut node_leaders = [f64::from(u8::from(context.launch.is_node_leader()))];
    collective.all_reduce_scalars(&mut node_leaders, Reduction::Sum)?;
    let forecaster = Forecaster {
        config,
        batch,
        ranks: collective.world_size(),
        machines: node_leaders[0] as usize,
        threads: config.train.threads.unwrap_or(context.threads),
        processor: context.device.into(),
        process_bytes: host_memory::resident(),
    };
    let forecast = agree(collective, data.as_ref().map(|data| forecaster.forecast(data)).transpose())?;
    // These figures are printed before the rehearsal, which may end the program if memory is too small.
    let printed = match (&forecast, config.log.format) {
        (Some(forecast), LogFormat::Text) => Reporter::console().result(&forecast.text()),
        _ => Ok(()),
    };
    agree(collective, printed.map_err(Stop::from))?;
    let outcome = rehearse(&context, config, batch)?;
    let (Some(data), Some(forecast)) = (data, forecast) else { return Ok(()) };
    let forecast = forecaster.with_rehearsal(forecast, &data, outcome);
    match config.log.format {
        LogFormat::Text => Reporter::console().result(&forecast.rehearsal_text())?,
        LogFormat::Json => Reporter::console().result(&serde_json::to_string(&forecast).map_err(Stop::failure)?)?,
    }
    Ok(())
}
