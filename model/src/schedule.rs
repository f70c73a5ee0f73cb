//! Schedules as pure functions: the number of masked tokens, the guidance scale and the learning rate.

use std::f64::consts::{FRAC_PI_2, PI, SQRT_2};

use serde::{Deserialize, Serialize};

/// Standard deviation of the normal distribution of mask ratios before truncation; its mean is 1.
const MASK_RATIO_STD: f64 = 0.25;

/// The growth of guidance during sampling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuidanceSchedule {
    /// Grows from 1 towards the scale with the fraction of known tokens.
    #[default]
    Linear,
    /// Uses the full scale in every step.
    Constant,
}

/// The course of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// Stays at its peak.
    Constant,
    /// Decays to the floor along half a cosine period.
    Cosine,
}

/// A learning-rate schedule over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// Course after warm-up.
    pub schedule: LrSchedule,
    /// Learning rate at the end of warm-up.
    pub peak: f64,
    /// Learning rate at the end of the cosine schedule.
    pub floor: f64,
    /// Length of the linear warm-up from 0.
    pub warmup_epochs: f64,
    /// Length of the run, including warm-up.
    pub epochs: f64,
}

/// Returns the number of tokens still masked after each of `steps` sampling steps, which follows MaskGIT's cosine and
/// ends with 0. The official sampler has 1 for the last step, but predicts all remaining tokens in it, too.
pub fn mask_lengths(sequence_length: i64, steps: i64) -> Vec<i64> {
    let mut masked = sequence_length;
    let mut lengths: Vec<i64> = (1..=steps)
        .map(|step| {
            // This needs f64: f32 is off by one where the cosine is exactly one half.
            let cosine = (FRAC_PI_2 * step as f64 / steps as f64).cos();
            let scheduled = (sequence_length as f64 * cosine).floor() as i64;
            masked = scheduled.min(masked - 1).max(1);
            masked
        })
        .collect();
    if let Some(last) = lengths.last_mut() {
        *last = 0;
    }
    lengths
}

/// Returns the guidance scale of a step after which `still_masked` tokens are masked. As in the official code, the last
/// step counts as if one token were left, so linear guidance never reaches the full scale.
pub fn guidance_at(schedule: GuidanceSchedule, scale: f64, still_masked: i64, sequence_length: i64) -> f64 {
    match schedule {
        GuidanceSchedule::Constant => scale,
        GuidanceSchedule::Linear => {
            1.0 + (scale - 1.0) * (sequence_length - still_masked.max(1)) as f64 / sequence_length as f64
        }
    }
}

/// Returns the learning rate at a fractional epoch (official `util/lr_sched.py`).
pub fn lr_at(rate: &LearningRate, epoch: f64) -> f64 {
    if epoch < rate.warmup_epochs {
        return rate.peak * epoch / rate.warmup_epochs;
    }
    match rate.schedule {
        LrSchedule::Constant => rate.peak,
        LrSchedule::Cosine => {
            let span = (rate.epochs - rate.warmup_epochs).max(f64::MIN_POSITIVE);
            let progress = ((epoch - rate.warmup_epochs) / span).clamp(0.0, 1.0);
            rate.floor + (rate.peak - rate.floor) * 0.5 * (1.0 + (PI * progress).cos())
        }
    }
}

/// Returns the number of masked tokens for a mask ratio.
pub fn num_masked(sequence_length: i64, ratio: f64) -> i64 {
    ((sequence_length as f64 * ratio).ceil() as i64).clamp(1, sequence_length)
}

/// Returns the mask ratio at quantile `uniform` in [0, 1) of a normal distribution with mean 1 and standard deviation
/// 0.25, truncated to [`ratio_min`, 1].
pub fn mask_ratio_quantile(uniform: f64, ratio_min: f64) -> f64 {
    let lowest = normal_cdf((ratio_min - 1.0) / MASK_RATIO_STD);
    let probability = lowest + uniform * (0.5 - lowest);
    (1.0 + MASK_RATIO_STD * normal_quantile(probability)).clamp(ratio_min, 1.0)
}

/// Returns the cumulative distribution function of the standard normal at `x`.
fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x / SQRT_2)
}

/// Inverts [`normal_cdf`] on (0, 0.5] with Newton's method. Starting at 0, the iteration converges from the right
/// because the distribution function is convex there.
fn normal_quantile(probability: f64) -> f64 {
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
    let mut x = 0.0;
    for _ in 0..64 {
        let step = (normal_cdf(x) - probability) / density(x);
        // A full Newton step can overshoot far into the tail, where the density underflows.
        x -= step.clamp(-1.0, 1.0);
        if step.abs() < 1e-15 {
            break;
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_invert_the_distribution() {
        for probability in [1e-9, 1e-4, 0.115, 0.3, 0.5] {
            let back = normal_cdf(normal_quantile(probability));
            assert!((back / probability - 1.0).abs() < 1e-9, "{probability} came back as {back}");
        }
        assert!((mask_ratio_quantile(0.0, 0.7) - 0.7).abs() < 1e-12);
        assert!(mask_ratio_quantile(1.0 - 1e-16, 0.7) > 0.999);
    }

    #[test]
    fn every_sampling_step_reveals_a_token_while_any_are_masked() {
        for (length, steps) in [(16, 1), (16, 16), (256, 64), (256, 256), (4, 4), (4, 9)] {
            let lengths = mask_lengths(length, steps);
            assert_eq!(lengths.len() as i64, steps);
            let mut before = length;
            for after in lengths {
                assert!(after < before || (steps > length && after == 1 && before == 1), "{length} {steps}");
                before = after;
            }
            assert_eq!(before, 0);
        }
    }

    #[test]
    fn a_cosine_of_one_half_is_not_rounded_down() {
        assert_eq!(mask_lengths(256, 3)[1], 128);
        assert_eq!(mask_lengths(256, 96)[63], 128);
    }

    #[test]
    fn at_least_one_token_is_masked_in_training() {
        assert_eq!((num_masked(256, 0.7), num_masked(256, 1.0), num_masked(16, 0.0)), (180, 256, 1));
    }

    #[test]
    fn the_learning_rate_is_defined_at_every_epoch() {
        let rate = |warmup_epochs, epochs| LearningRate {
            schedule: LrSchedule::Cosine,
            peak: 1.0,
            floor: 0.1,
            warmup_epochs,
            epochs,
        };
        assert_eq!(lr_at(&rate(0.0, 10.0), 0.0), 1.0);
        assert_eq!(lr_at(&rate(0.0, 10.0), 11.0), 0.1);
        assert!((0.1..=1.0).contains(&lr_at(&rate(10.0, 10.0), 10.0)));
    }
}
