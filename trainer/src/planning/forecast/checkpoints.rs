//! The size of a checkpoint, and how many a run saves and keeps.

use std::{collections::VecDeque, time::Duration};

use arinar_checkpoint::Retention;
use arinar_model::config::ModelConfig;
use serde::Serialize;

use crate::{
    config::{Every, TrainConfig},
    run_length::RunLength,
};

/// Bytes of a float32.
const ELEMENT: u64 = 4;
/// Bytes of a tensor's entry in a safetensors header: name, type, shape and offsets.
const ENTRY: u64 = 118;
/// Bytes of state and manifest, most of which is the configuration.
const DESCRIPTION: u64 = 6_000;

/// The checkpoints of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct CheckpointForecast {
    /// Size of one checkpoint.
    pub bytes: u64,
    /// Number of checkpoints saved during the run.
    pub saved: u64,
    /// Number of checkpoints that exist at its end.
    pub kept: u64,
    /// The largest size of all checkpoints that exist at the same time, including one that is being written.
    #[serde(rename = "most_bytes")]
    pub peak_bytes: u64,
    /// Bytes written during the run.
    pub written_bytes: u64,
}

impl CheckpointForecast {
    /// Forecasts the checkpoints of a run of this length and pace.
    pub(crate) fn new(config: &TrainConfig, length: &RunLength, step_seconds: f64) -> Self {
        // As in the training loop: at every multiple of a number of steps, or after some time since the newest checkpoint.
        let steps_of = |time: Duration| (time.as_secs_f64() / step_seconds.max(1e-6)).ceil().max(1.0) as u64;
        let next = |step: u64| match config.checkpoint.every {
            Every::Steps(steps) => (step / steps + 1) * steps,
            Every::Time(time) => step.saturating_add(steps_of(time)),
        };
        let retention = Retention { keep_last: config.checkpoint.keep_last, keep_every_steps: length.keep_every_steps };
        let (saved, peak, kept) = simulate(retention, next, length.total_steps);
        let bytes = checkpoint_bytes(&config.model);
        Self { bytes, saved, kept, peak_bytes: peak * bytes, written_bytes: saved * bytes }
    }
}

/// Returns the size of a checkpoint of this model: weights, moving averages and two moments in float32, and their description.
pub(crate) fn checkpoint_bytes(model: &ModelConfig) -> u64 {
    let (parameters, buffers) = (model.parameter_count() as u64, model.buffer_count() as u64);
    let headers = 4 * model.tensor_count() as u64 * ENTRY;
    4 * ELEMENT * parameters + 2 * ELEMENT * buffers + headers + DESCRIPTION
}

/// Returns how many checkpoints are saved, how many exist at most at the same time, and how many exist at the end. `next`
/// returns the step of the checkpoint after the one at a step.
///
/// Decides as [`Retention::superseded`] does, but in constant time per checkpoint, because there may be millions.
fn simulate(retention: Retention, next: impl Fn(u64) -> u64, total_steps: u64) -> (u64, u64, u64) {
    let mut newest = VecDeque::new();
    let (mut saved, mut peak, mut permanent, mut temporary) = (0, 0, 0, 0);
    let (mut interval, mut step) = (0, 0);
    while step < total_steps {
        let permanent_step = retention.keep_every_steps.map_or(u64::MAX, |every| (step / every + 1) * every);
        step = next(step).min(permanent_step).min(total_steps);
        // The first checkpoint in each interval is kept permanently.
        let its_interval = retention.keep_every_steps.map_or(0, |every| step / every);
        let is_permanent = its_interval > interval;
        interval = its_interval;
        saved += 1;
        newest.push_back(is_permanent);
        if is_permanent {
            permanent += 1;
        } else {
            temporary += 1;
        }
        peak = peak.max(permanent + temporary);
        if newest.len() > retention.keep_last && newest.pop_front() == Some(false) {
            temporary -= 1;
        }
    }
    (saved, peak, permanent + temporary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_checkpoints_follows_from_retention() {
        let keep = |keep_last, keep_every_steps| Retention { keep_last, keep_every_steps };
        // 10, 20, ..., 100: the last three are kept, and one more exists while it is written.
        let after = |interval: u64| move |step: u64| step + interval;
        assert_eq!(simulate(keep(3, None), after(10), 100), (10, 4, 3));
        assert_eq!(simulate(keep(3, None), after(1000), 100), (1, 1, 1));
        // 10, 20, 30, 35, 45, 55, 65, 70, ...: those at 35, 70 and 105 are permanent; 100 and 105 are the last two.
        assert_eq!(simulate(keep(2, Some(35)), after(10), 105), (12, 5, 4));
    }

    /// The decisions of the run itself, one by one.
    fn decided(retention: Retention, next: impl Fn(u64) -> u64, total_steps: u64) -> (u64, u64, u64) {
        let (mut present, mut saved, mut peak, mut step) = (Vec::new(), 0, 0, 0);
        while step < total_steps {
            let permanent_step = retention.keep_every_steps.map_or(u64::MAX, |every| (step / every + 1) * every);
            step = next(step).min(permanent_step).min(total_steps);
            present.push(step);
            saved += 1;
            peak = peak.max(present.len());
            let superseded = retention.superseded(&present);
            present.retain(|step| !superseded.contains(step));
        }
        (saved, peak as u64, present.len() as u64)
    }

    #[test]
    fn the_simulation_decides_as_the_run_does() {
        for keep_last in [1, 2, 5] {
            for every in [None, Some(1), Some(7), Some(40), Some(1000)] {
                for interval in [1, 3, 10, 45] {
                    let retention = Retention { keep_last, keep_every_steps: every };
                    let after = |step: u64| step + interval;
                    let (found, truth) = (simulate(retention, after, 333), decided(retention, after, 333));
                    assert_eq!(found, truth, "{retention:?}, {interval}");
                }
            }
        }
    }

    #[test]
    fn the_size_of_arinar_b_is_the_measured_one() {
        let bytes = checkpoint_bytes(&ModelConfig::arinar_b());
        assert!((3_407_000_000..3_408_000_000).contains(&bytes), "{bytes}");
    }
}
