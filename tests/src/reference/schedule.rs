//! Schedules of the learning rate, mask ratio, masked tokens and guidance (paper, sections 3 and 4.1; MAR, arXiv
//! 2406.11838).

use std::f64::consts::{FRAC_PI_2, PI, SQRT_2};

/// Returns the learning rate at an epoch: a linear warm-up from zero, then constant, or half a cosine down to zero at
/// `epochs`.
pub fn learning_rate(peak: f64, warmup_epochs: f64, cosine: bool, epochs: f64, epoch: f64) -> f64 {
    if epoch < warmup_epochs {
        peak * epoch / warmup_epochs
    } else if cosine {
        peak * (1.0 + (PI * (epoch - warmup_epochs) / (epochs - warmup_epochs)).cos()) / 2.0
    } else {
        peak
    }
}

/// Returns the number of masked tokens of a picture. Their share is the quantile `uniform` of a normal distribution
/// with mean 1 and standard deviation 0.25, truncated to [`least`, 1].
pub fn masked_tokens(length: i64, least: f64, uniform: f64) -> i64 {
    let below = normal_distribution((least - 1.0) / 0.25);
    let quantile = below + uniform * (normal_distribution(0.0) - below);
    (length as f64 * (1.0 + 0.25 * normal_quantile(quantile))).ceil() as i64
}

/// Returns the number of masked tokens after each sampling step: MaskGIT's cosine schedule, with at least one fewer in
/// each step and none after the last.
pub fn masked_after(length: i64, steps: i64) -> Vec<i64> {
    let mut masked = length;
    let mut after = |step: i64| {
        let cosine = (FRAC_PI_2 * step as f64 / steps as f64).cos();
        masked = if step == steps { 0 } else { ((length as f64 * cosine).floor() as i64).min(masked - 1).max(1) };
        masked
    };
    (1..=steps).map(&mut after).collect()
}

/// Returns the guidance of a step after which `masked` tokens are masked. Linear guidance treats the last step as if
/// one token were left.
pub fn guidance(linear: bool, scale: f64, masked: i64, length: i64) -> f64 {
    if linear { 1.0 + (scale - 1.0) * (length - masked.max(1)) as f64 / length as f64 } else { scale }
}

fn normal_distribution(x: f64) -> f64 {
    0.5 * libm::erfc(-x / SQRT_2)
}

/// Returns the quantile of the standard normal distribution, by bisection.
pub fn normal_quantile(probability: f64) -> f64 {
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if normal_distribution(middle) < probability { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}
