//! Where the features of a token come from in sampling, and classifier-free guidance on them.

use tch::{Kind, Tensor};

use crate::gmm::Mixture;

/// Candidates that compete for one feature (official `ARHead.sample`).
const CANDIDATES: i64 = 1000;

/// Stands for the logarithm of a density that underflows, so that ratios stay finite.
const LOWEST_LOG_DENSITY: f64 = -1e30;

/// A sampling step, before its features are chosen.
#[derive(Debug)]
pub struct Step<'a> {
    /// Counted from 0.
    pub index: usize,
    /// Positions that the step reveals, [B, R] i64, in no particular order.
    pub positions: &'a Tensor,
    /// Conditions of the tokens: [B R, D], or [2 B R, D] with the null class's in the second half.
    pub z: &'a Tensor,
    /// Guidance scale of this step.
    pub guidance: f64,
}

/// Chooses features one after the other. Sampling draws them; a test replays recorded ones.
pub trait FeatureSource {
    /// Called before the first feature of each step.
    fn begin_step(&mut self, step: &Step<'_>);

    /// Chooses feature number `feature` of all tokens of the step, given the mixtures under the class and,
    /// with guidance, under the null class.
    ///
    /// # Shapes
    /// Mixtures [N, K]; returns `[N]`.
    fn choose(&mut self, feature: i64, conditional: &Mixture, null: Option<&Mixture>) -> Tensor;
}

/// Draws from the conditional mixture; with guidance it draws candidates and resamples them with weights
/// (p_conditional / p_null)^(guidance - 1), un-tempered. The official way.
#[derive(Debug)]
pub struct Resampler {
    temperature: f64,
    guidance: f64,
}

impl Resampler {
    /// `temperature` divides every standard deviation.
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

/// Probability with which each candidate is the one chosen.
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
    fn densities_that_underflow_leave_probabilities() {
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
