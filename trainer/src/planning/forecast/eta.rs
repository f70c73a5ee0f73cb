//! From the times of some steps to that of a run.

use serde::Serialize;

/// Seconds of a step, over several.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pace {
    /// The middle one.
    pub median: f64,
    /// The shortest.
    pub least: f64,
    /// The longest.
    pub most: f64,
}

impl Pace {
    /// Of these times; `None` without any.
    pub fn of(seconds: &[f64]) -> Option<Self> {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = (sorted.get(sorted.len().saturating_sub(1) / 2)? + sorted.get(sorted.len() / 2)?) / 2.0;
        Some(Self { median, least: *sorted.first()?, most: *sorted.last()? })
    }
}

/// What so many pictures of a rank took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Pictures.
    pub images: usize,
    /// Seconds.
    pub seconds: f64,
}

/// Seconds of a step of `images` pictures, from two smaller ones: on the line through both, and never less than the
/// larger one took. From one size alone, in proportion to it, which is too much: a step has costs of its own.
pub fn extrapolate(small: Sample, large: Sample, images: usize) -> f64 {
    if images <= large.images {
        return large.seconds;
    }
    let more = (images - large.images) as f64;
    if small.images >= large.images {
        return large.seconds * images as f64 / large.images.max(1) as f64;
    }
    let slope = (large.seconds - small.seconds) / (large.images - small.images) as f64;
    // Noise can tilt the line: no picture is free.
    let least = 0.5 * large.seconds / large.images as f64;
    large.seconds + slope.max(least) * more
}

/// How long a run takes, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Eta {
    /// Steps alone.
    pub steps: f64,
    /// Copying and hashing of all checkpoints, as if nothing else went on meanwhile.
    pub checkpoints: f64,
}

impl Eta {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.steps + self.checkpoints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_middle_step() {
        assert_eq!(Pace::of(&[]), None);
        assert_eq!(Pace::of(&[3.0, 1.0, 9.0]), Some(Pace { median: 3.0, least: 1.0, most: 9.0 }));
        assert_eq!(Pace::of(&[3.0, 1.0, 9.0, 5.0]).map(|pace| pace.median), Some(4.0));
    }

    #[test]
    fn longer_steps_lie_on_the_line_of_shorter_ones() {
        let sample = |images, seconds| Sample { images, seconds };
        assert_eq!(extrapolate(sample(1, 3.0), sample(5, 7.0), 5), 7.0);
        assert_eq!(extrapolate(sample(1, 3.0), sample(5, 7.0), 11), 13.0);
        assert_eq!(extrapolate(sample(1, 3.0), sample(1, 2.0), 4), 8.0, "from one size");
        assert_eq!(extrapolate(sample(1, 8.0), sample(4, 4.0), 8), 6.0, "noise");
    }
}
