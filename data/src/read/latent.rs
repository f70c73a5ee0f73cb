//! Sampling of training latents from moments, `(mean + exp(logvar / 2) * noise) * scale`, in a form that the compiler
//! vectorises.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Values converted from half precision at a time.
const CHUNK: usize = 256;

/// Samples one latent from its posterior.
///
/// # Shapes
/// `moments` contains [2C, H, W] f16 values as little-endian bytes, the mean first. `noise` contains [C, H, W] standard
/// normals on entry and the latent on return. `scratch` is reused memory.
pub(crate) fn sample_latent(moments: &[u8], scale: f32, noise: &mut [f32], scratch: &mut Vec<f32>) {
    scratch.resize(moments.len() / 2, 0.0);
    let mut halves = [f16::ZERO; CHUNK];
    for (bytes, values) in moments.chunks(2 * CHUNK).zip(scratch.chunks_mut(CHUNK)) {
        let halves = &mut halves[..values.len()];
        for (half, two) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
            *half = f16::from_le_bytes([two[0], two[1]]);
        }
        halves.convert_to_f32_slice(values);
    }
    let (means, logvars) = scratch.split_at(noise.len());
    for ((value, &mean), &logvar) in noise.iter_mut().zip(means).zip(logvars) {
        *value = (mean + exp_half(logvar) * *value) * scale;
    }
}

/// Returns `exp(logvar / 2)` for logvar clamped to [-30, 20], with a relative error below 2e-7. It uses additions and
/// multiplications only, so that all machines compute the same bits.
#[inline]
fn exp_half(logvar: f32) -> f32 {
    /// 1.5 * 2^23: adding and then subtracting it rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 as the sum of a short and a small number (Cody and Waite).
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = logvar.clamp(-30.0, 20.0) * 0.5;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let rest = (x - power * LN_2_HIGH) - power * LN_2_LOW;
    // Taylor series of exp for |rest| <= ln(2) / 2; the next term is below 1.2e-7.
    let mut sum = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * rest + coefficient;
    }
    let exponent = (power as i32 + 127) << 23;
    sum * f32::from_bits(exponent as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_half_is_exact_to_single_precision() {
        for step in 0..=100_000 {
            let logvar = -32.0 + 54.0 * step as f32 / 100_000.0;
            let expected = (f64::from(logvar.clamp(-30.0, 20.0)) / 2.0).exp();
            let error = (f64::from(exp_half(logvar)) / expected - 1.0).abs();
            assert!(error < 4e-7, "{logvar}: {error:e}");
        }
    }

    #[test]
    fn a_latent_follows_the_formula() {
        let values = [0.5f32, -1.0, -2.0, 3.0].map(f16::from_f32);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut latent = [2.0, -1.0];
        sample_latent(&bytes, 0.25, &mut latent, &mut Vec::new());
        let expected = [(0.5 + (-1.0f32).exp() * 2.0) * 0.25, (-1.0 - 1.5f32.exp()) * 0.25];
        assert!(latent.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6), "{latent:?}");
    }

    #[test]
    fn a_latent_of_any_length_follows_the_formula() {
        // Moments are converted in chunks of 256 values.
        for length in [1, 127, 128, 129, 256, 700] {
            let means = (0..length).map(|index| index as f32 * 0.5);
            let logvars = (0..length).map(|index| -(index as f32) * 0.125 % 8.0);
            let moments: Vec<f32> = means.clone().chain(logvars.clone()).collect();
            let bytes: Vec<u8> = moments.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
            let mut latent = vec![2.0; length];
            sample_latent(&bytes, 0.5, &mut latent, &mut Vec::new());
            for ((found, mean), logvar) in latent.into_iter().zip(means).zip(logvars) {
                let expected = (mean + (0.5 * logvar).exp() * 2.0) * 0.5;
                assert!((found - expected).abs() < 1e-4, "{length}: {found}, expected {expected}");
            }
        }
    }
}
