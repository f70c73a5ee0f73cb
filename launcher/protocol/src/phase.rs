//! What a rank can be doing, and what that costs.

use std::{
    fmt,
    ops::{AddAssign, Sub},
};

use serde::{Deserialize, Serialize};

/// What a rank is doing. It is always doing exactly one of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// From the start of the process to the first step: MPI, data, weights, checkpoint.
    #[default]
    StartUp,
    /// Waiting for the next batch.
    DataWait,
    /// Forward and backward pass, update, logs.
    Compute,
    /// Waiting for the other ranks, and summing with them.
    AllReduce,
    /// Waiting for a checkpoint: for the copy of the weights, or for room.
    Checkpoint,
    /// Training is over; waiting until the last checkpoint is where it belongs.
    Finish,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::StartUp, Self::DataWait, Self::Compute, Self::AllReduce, Self::Checkpoint, Self::Finish];

    /// Its name in messages and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::StartUp => "start_up",
            Self::DataWait => "data_wait",
            Self::Compute => "compute",
            Self::AllReduce => "all_reduce",
            Self::Checkpoint => "checkpoint",
            Self::Finish => "finish",
        }
    }

    /// True for what belongs to a step, whose length can be learned; other phases last as long as they need.
    pub fn is_step(self) -> bool {
        matches!(self, Self::DataWait | Self::Compute | Self::AllReduce)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Where wall time went, in seconds. Every second is in exactly one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seconds {
    /// Training: what the time is for.
    pub compute: f64,
    /// All-reduce that nothing hid, waiting for slower ranks included.
    pub all_reduce: f64,
    /// Waiting for data.
    pub data_wait: f64,
    /// Waiting for checkpoints, those at the end included.
    pub checkpoint: f64,
    /// Before the first step.
    pub start_up: f64,
    /// Steps that were trained and lost, since the run went on from an earlier checkpoint.
    pub lost_work: f64,
}

impl Seconds {
    /// Name and seconds of each part, in the order in which they are told.
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

    /// All of them together.
    pub fn total(&self) -> f64 {
        self.parts().iter().map(|(_, seconds)| seconds).sum()
    }

    /// The share of the time that trained; 1 before there is any.
    pub fn goodput(&self) -> f64 {
        let total = self.total();
        if total > 0.0 { self.compute / total } else { 1.0 }
    }

    /// Charges `seconds` to what a phase belongs to.
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

/// What was spent since `earlier`.
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
