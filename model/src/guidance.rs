//! Sources of the features in sampling, and classifier-free guidance.

use tch::{Kind, Tensor};

use crate::gmm::Mixture;

/// Number of candidates drawn for one feature (official `ARHead.sample`).
const CANDIDATES: i64 = 1000;

/// Replaces the logarithm of a density that underflows, so that ratios stay finite.
const LOWEST_LOG_DENSITY: f64 = -1e30;

/// The inputs of a sampling step, before its features are chosen.
#[derive(Debug)]
pub struct Step<'a> {
    /// Index of the step, starting at 0.
    pub index: usize,
    /// Positions revealed by the step, [B, R] i64, in no particular order.
    pub positions: &'a Tensor,
    /// Condition vectors of the tokens: [B R, D], or with guidance [2 B R, D] with those of the null class in the
    /// second half.
    pub z: &'a Tensor,
    /// Guidance scale of this step.
    pub guidance: f64,
}

/// A source of features in sampling. [`Resampler`] draws them; tests replay recorded ones.
pub trait FeatureSource {
    /// Prepares for a step; called before its first feature.
    fn begin_step(&mut self, step: &Step<'_>);

    /// Chooses feature number `feature` of all tokens of the step, given the mixtures for the class and, with guidance,
    /// for the null class.
    ///
    /// # Shapes
    /// Mixtures [N, K]; returns `[N]`.
    fn choose(&mut self, feature: i64, conditional: &Mixture, null: Option<&Mixture>) -> Tensor;
}

/// The sampler of the official code. Without guidance it draws from the conditional mixture. With guidance it draws
/// candidates from it and resamples them with weights (p_conditional / p_null)^(guidance - 1), computed without the
/// temperature.
#[derive(Debug)]
pub struct Resampler {
    temperature: f64,
    guidance: f64,
}

impl Resampler {
    /// Creates a sampler; `temperature` divides every standard deviation.
    pub fn new(temperature: f64) -> Self {
        Self { temperature, guidance: 1.0 }
    }
}

impl FeatureSource for Resampler {
    fn begin_step(&mut self, step: &Step<'_>) {
        self.guidance = step.guidance;
    }

    fn choose(&mut self, _feature: i64, conditional: &Mixture, null: Option<&Mixture>) -> Tensor {
        let Some(null) = null else {
            return conditional.sample(1, self.temperature).squeeze_dim(1);
        };
        let candidates = conditional.sample(CANDIDATES, self.temperature); // [N, V]
        let probability = selection_probability(&candidates, conditional, null, self.guidance);
        candidates.gather(1, &probability.multinomial(1, true), false).squeeze_dim(1)
    }
}

/// Returns the probability of choosing each candidate.
///
/// # Shapes
/// `candidates` [N, V], mixtures [N, K]; returns [N, V].
pub fn selection_probability(candidates: &Tensor, conditional: &Mixture, null: &Mixture, guidance: f64) -> Tensor {
    let log_density = |mixture: &Mixture| mixture.log_density(candidates).clamp_min(LOWEST_LOG_DENSITY);
    let log_ratio = log_density(conditional) - log_density(null);
    (log_ratio * (guidance - 1.0)).softmax(-1, None::<Kind>)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaussian(mean: f32, logvar: f32) -> Mixture {
        let one = |value: f32| Tensor::from_slice(&[value]).view([1, 1]);
        Mixture { log_weight: one(0.0), mean: one(mean), logvar: one(logvar) }
    }

    #[test]
    fn probabilities_are_valid_when_densities_underflow() {
        let candidates = Tensor::from_slice(&[0.0_f32, 1.0, 50.0]).view([1, 3]);
        for logvar in [0.0, -60.0, -120.0] {
            let probability = selection_probability(&candidates, &gaussian(0.0, 0.0), &gaussian(9.0, logvar), 4.5);
            let sum = probability.sum(Kind::Double).double_value(&[]);
            assert!((sum - 1.0).abs() < 1e-6, "{logvar}: {probability}");
        }
    }

    #[test]
    fn guidance_one_chooses_uniformly() {
        let candidates = Tensor::from_slice(&[-1.0_f32, 0.0, 1.0, 3.0]).view([1, 4]);
        let probability = selection_probability(&candidates, &gaussian(0.0, 0.0), &gaussian(1.0, 0.5), 1.0);
        assert_eq!(probability, Tensor::from_slice(&[0.25_f32; 4]).view([1, 4]));
    }
}
