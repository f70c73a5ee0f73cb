//! Durations of the most recent steps.

use std::collections::VecDeque;

use arinar_protocol::Beat;

/// The durations of the most recent steps.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepTimes {
    /// Seconds, oldest first.
    recent: VecDeque<f64>,
    last_step: u64,
}

impl StepTimes {
    /// Maximum number of steps to remember.
    const CAPACITY: usize = 64;

    /// Adds the newest step of a heartbeat, unless it was added already.
    pub(crate) fn add(&mut self, beat: &Beat) {
        let is_known = beat.step_seconds > 0.0 && beat.step_seconds.is_finite();
        if is_known && beat.step != self.last_step {
            self.last_step = beat.step;
            self.recent.push_back(beat.step_seconds);
            if self.recent.len() > Self::CAPACITY {
                self.recent.pop_front();
            }
        }
    }

    /// Returns the median in seconds; `None` before the first step.
    pub(crate) fn median(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.recent.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }

    /// Returns the mean in seconds; `None` before the first step.
    pub(crate) fn mean(&self) -> Option<f64> {
        (!self.recent.is_empty()).then(|| self.recent.iter().sum::<f64>() / self.recent.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_added_once() {
        let mut times = StepTimes::default();
        assert_eq!(times.median(), None);
        for (step, step_seconds) in [(1, 1.0), (1, 1.0), (2, 2.0), (3, 9.0), (4, f64::NAN), (5, 0.0)] {
            times.add(&Beat { step, step_seconds, ..Beat::default() });
        }
        assert_eq!((times.median(), times.mean()), (Some(2.0), Some(4.0)));
    }
}
