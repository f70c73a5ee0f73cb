//! Wall-clock time, split into parts.

use std::ops::{AddAssign, Sub};

use serde::{Deserialize, Serialize};

use crate::phase::Phase;

/// Wall-clock seconds, split into parts. Every second is counted in exactly one part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seconds {
    /// Training proper.
    pub compute: f64,
    /// All-reduce that did not overlap with computation, including the wait for slower ranks.
    pub all_reduce: f64,
    /// Waiting for data.
    pub data_wait: f64,
    /// Waiting for checkpoints, including the last one of the run.
    pub checkpoint: f64,
    /// Everything before the first step.
    pub start_up: f64,
    /// Steps that were trained and lost because the run resumed from an earlier checkpoint.
    pub lost_work: f64,
}

impl Seconds {
    /// Returns the name and the seconds of each part, in the order in which they are reported.
    pub fn parts(&self) -> [(&'static str, f64); 6] {
        [
            ("compute", self.compute),
            ("all_reduce", self.all_reduce),
            ("data_wait", self.data_wait),
            ("checkpoint", self.checkpoint),
            ("start_up", self.start_up),
            ("lost_work", self.lost_work),
        ]
    }

    /// Returns the sum of all parts.
    pub fn total(&self) -> f64 {
        self.parts().iter().map(|(_, seconds)| seconds).sum()
    }

    /// Returns the share of the time that was spent on training; 1 if no time was counted yet.
    pub fn goodput(&self) -> f64 {
        let total = self.total();
        if total > 0.0 { self.compute / total } else { 1.0 }
    }

    /// Adds `seconds` to the part that a phase belongs to.
    pub fn charge(&mut self, phase: Phase, seconds: f64) {
        *match phase {
            Phase::StartUp => &mut self.start_up,
            Phase::DataWait => &mut self.data_wait,
            Phase::Compute => &mut self.compute,
            Phase::AllReduce => &mut self.all_reduce,
            Phase::Checkpoint | Phase::Finish => &mut self.checkpoint,
        } += seconds;
    }
}

impl AddAssign for Seconds {
    fn add_assign(&mut self, other: Self) {
        self.compute += other.compute;
        self.all_reduce += other.all_reduce;
        self.data_wait += other.data_wait;
        self.checkpoint += other.checkpoint;
        self.start_up += other.start_up;
        self.lost_work += other.lost_work;
    }
}

/// The time spent since `earlier`.
impl Sub for Seconds {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            compute: self.compute - earlier.compute,
            all_reduce: self.all_reduce - earlier.all_reduce,
            data_wait: self.data_wait - earlier.data_wait,
            checkpoint: self.checkpoint - earlier.checkpoint,
            start_up: self.start_up - earlier.start_up,
            lost_work: self.lost_work - earlier.lost_work,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_charged_once() {
        for phase in Phase::ALL {
            let mut seconds = Seconds::default();
            seconds.charge(phase, 2.0);
            assert_eq!(seconds.total(), 2.0, "{phase}");
            assert_eq!(seconds.goodput(), f64::from(u8::from(phase == Phase::Compute)));
            assert_eq!(serde_json::to_value(phase).unwrap_or_default(), phase.name());
        }
        assert_eq!(Seconds::default().goodput(), 1.0);
    }

    #[test]
    fn sums_are_of_each_part() {
        let one =
            Seconds { compute: 1.0, all_reduce: 2.0, data_wait: 3.0, checkpoint: 4.0, start_up: 5.0, lost_work: 6.0 };
        let mut sum = one;
        sum += one;
        assert_eq!(sum.parts().map(|(_, seconds)| seconds), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
        assert_eq!(sum - one, one);
    }
}
