//! Step times: their statistics, and the estimate for a full step and a whole run.

use serde::Serialize;

/// Statistics of step times, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct StepTimes {
    pub median: f64,
    #[serde(rename = "least")]
    pub min: f64,
    #[serde(rename = "most")]
    pub max: f64,
}

impl StepTimes {
    /// Computes the statistics, or returns `None` for an empty slice.
    pub(crate) fn new(seconds: &[f64]) -> Option<Self> {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = (sorted.get(sorted.len().saturating_sub(1) / 2)? + sorted.get(sorted.len() / 2)?) / 2.0;
        Some(Self { median, min: *sorted.first()?, max: *sorted.last()? })
    }
}

/// The time of a step with this number of images per rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TimedStep {
    pub images: usize,
    pub seconds: f64,
}

/// Estimates the seconds of a step of `images` images from two smaller steps. The result is on the line through both, and never
/// less than the time of the larger step. If both have the same size, it is proportional to the number of images, which is
/// too much, because a step has fixed costs.
pub(crate) fn extrapolate(small: TimedStep, large: TimedStep, images: usize) -> f64 {
    if images <= large.images {
        return large.seconds;
    }
    let more = (images - large.images) as f64;
    if small.images >= large.images {
        return large.seconds * images as f64 / large.images.max(1) as f64;
    }
    let slope = (large.seconds - small.seconds) / (large.images - small.images) as f64;
    // Noise can flatten the line, but every image takes time.
    let min_slope = 0.5 * large.seconds / large.images as f64;
    large.seconds + slope.max(min_slope) * more
}

/// The duration of a run, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Eta {
    /// Time of all steps.
    pub steps: f64,
    /// Time to copy and hash all checkpoints, if none of it overlaps with training.
    pub checkpoints: f64,
}

impl Eta {
    /// Returns the sum.
    pub(crate) fn total(&self) -> f64 {
        self.steps + self.checkpoints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_two() {
        assert_eq!(StepTimes::new(&[]), None);
        assert_eq!(StepTimes::new(&[3.0, 1.0, 9.0]), Some(StepTimes { median: 3.0, min: 1.0, max: 9.0 }));
        assert_eq!(StepTimes::new(&[3.0, 1.0, 9.0, 5.0]).map(|times| times.median), Some(4.0));
    }

    #[test]
    fn longer_steps_are_on_the_line_through_shorter_ones() {
        let step = |images, seconds| TimedStep { images, seconds };
        assert_eq!(extrapolate(step(1, 3.0), step(5, 7.0), 5), 7.0);
        assert_eq!(extrapolate(step(1, 3.0), step(5, 7.0), 11), 13.0);
        assert_eq!(extrapolate(step(1, 3.0), step(1, 2.0), 4), 8.0, "from one size");
        assert_eq!(extrapolate(step(1, 8.0), step(4, 4.0), 8), 6.0, "noise");
    }
}
