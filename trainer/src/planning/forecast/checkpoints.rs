//! How large a checkpoint is, how many a run saves, and how many it keeps.

use std::collections::VecDeque;

use arinar_checkpoint::Retention;
use arinar_model::config::ModelConfig;
use serde::Serialize;

use crate::{
    config::{Every, TrainConfig},
    run_length::RunLength,
};

/// Bytes of a float32.
const ELEMENT: u64 = 4;
/// What a safetensors header spends on a tensor: its name, type, shape and place.
const ENTRY: u64 = 118;
/// State and manifest: the configuration above all.
const DESCRIPTION: u64 = 6_000;

/// A run's checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Checkpoints {
    /// Bytes of one.
    pub bytes: u64,
    /// Saved over the whole run.
    pub saved: u64,
    /// Still there at its end.
    pub kept: u64,
    /// Most bytes that are there at once, the newest being written among them.
    pub most_bytes: u64,
    /// Bytes written over the whole run.
    pub written_bytes: u64,
}

impl Checkpoints {
    /// Of a run with this plan whose steps take so long.
    pub fn of_run(config: &TrainConfig, length: &RunLength, step_seconds: f64) -> Self {
        // As the loop decides: on every multiple of so many steps, or so long after the newest.
        let by_time = |time: std::time::Duration| (time.as_secs_f64() / step_seconds.max(1e-6)).ceil().max(1.0) as u64;
        let next = |step: u64| match config.checkpoint.every {
            Every::Steps(steps) => (step / steps + 1) * steps,
            Every::Time(time) => step.saturating_add(by_time(time)),
        };
        let retention = Retention { keep_last: config.checkpoint.keep_last, keep_every_steps: length.keep_every_steps };
        let (saved, most, kept) = simulate(retention, next, length.total_steps);
        let bytes = checkpoint_bytes(&config.model);
        Self { bytes, saved, kept, most_bytes: most * bytes, written_bytes: saved * bytes }
    }
}

/// Bytes of a checkpoint of this model: weights, averages and two moments in float32, and what describes them.
pub fn checkpoint_bytes(model: &ModelConfig) -> u64 {
    let (parameters, buffers) = (model.parameter_count() as u64, model.buffer_count() as u64);
    let headers = 4 * model.tensor_count() as u64 * ENTRY;
    4 * ELEMENT * parameters + 2 * ELEMENT * buffers + headers + DESCRIPTION
}

/// How many are saved, how many are there at most, and at the end; `next` gives the step of the one after a step.
/// Decides as [`Retention::superseded`] does, but in constant time for each: there may be millions.
fn simulate(retention: Retention, next: impl Fn(u64) -> u64, total_steps: u64) -> (u64, u64, u64) {
    let mut newest = VecDeque::new();
    let (mut saved, mut most, mut for_ever, mut interval, mut step) = (0, 0, 0, 0, 0);
    let mut passing = 0;
    while step < total_steps {
        let by_plan = retention.keep_every_steps.map_or(u64::MAX, |every| (step / every + 1) * every);
        step = next(step).min(by_plan).min(total_steps);
        let own_interval = retention.keep_every_steps.map_or(0, |every| step / every);
        let stays = own_interval > interval;
        interval = own_interval;
        saved += 1;
        newest.push_back(stays);
        if stays {
            for_ever += 1
        } else {
            passing += 1
        }
        most = most.max(for_ever + passing);
        if newest.len() > retention.keep_last && newest.pop_front() == Some(false) {
            passing -= 1;
        }
    }
    (saved, most, for_ever + passing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_decides_what_stays() {
        let keep = |keep_last, keep_every_steps| Retention { keep_last, keep_every_steps };
        // 10, 20, ..., 100: the last three stay, and one more is there while it is written.
        let after = |interval: u64| move |step: u64| step + interval;
        assert_eq!(simulate(keep(3, None), after(10), 100), (10, 4, 3));
        assert_eq!(simulate(keep(3, None), after(1000), 100), (1, 1, 1));
        // 10, 20, 30, 35, 45, 55, 65, 70, ...: those at 35, 70 and 105 for ever; 100 and 105 are the last.
        assert_eq!(simulate(keep(2, Some(35)), after(10), 105), (12, 5, 4));
    }

    /// The decisions of the run itself, one by one.
    fn decided(retention: Retention, next: impl Fn(u64) -> u64, total_steps: u64) -> (u64, u64, u64) {
        let (mut present, mut saved, mut most, mut step) = (Vec::new(), 0, 0, 0);
        while step < total_steps {
            let by_plan = retention.keep_every_steps.map_or(u64::MAX, |every| (step / every + 1) * every);
            step = next(step).min(by_plan).min(total_steps);
            present.push(step);
            saved += 1;
            most = most.max(present.len());
            let superseded = retention.superseded(&present);
            present.retain(|step| !superseded.contains(step));
        }
        (saved, most as u64, present.len() as u64)
    }

    #[test]
    fn it_is_what_the_run_itself_decides() {
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
    fn arinar_b_takes_what_it_is_known_to_take() {
        let bytes = checkpoint_bytes(&ModelConfig::arinar_b());
        assert!((3_407_000_000..3_408_000_000).contains(&bytes), "{bytes}");
    }
}
