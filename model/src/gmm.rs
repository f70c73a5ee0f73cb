//! Mixtures of one-dimensional Gaussians.
//!
//! Shapes: ... any leading dimensions, K Gaussians, V values.

use std::f64::consts::TAU;

use tch::{Kind, Tensor};

/// One mixture of K Gaussians for every element of the leading dimensions.
#[derive(Debug)]
pub struct Mixture {
    /// Logarithms of the normalised weights, [..., K].
    pub log_weight: Tensor,
    /// Means, [..., K].
    pub mean: Tensor,
    /// Logarithms of the variances, not clamped, [..., K].
    pub logvar: Tensor,
}

impl Mixture {
    /// Splits the output of the head into K means, K log-variances and K weight logits.
    ///
    /// # Shapes
    /// `raw` is [..., 3K].
    pub fn from_raw(raw: &Tensor) -> Self {
        let parts = raw.chunk(3, -1);
        Self {
            log_weight: parts[2].log_softmax(-1, None::<Kind>),
            mean: parts[0].shallow_clone(),
            logvar: parts[1].shallow_clone(),
        }
    }

    /// Returns the log-density of `value` WITHOUT the constant -log(2 pi)/2, which the training loss omits.
    ///
    /// # Shapes
    /// [...] to [...].
    pub fn log_likelihood(&self, value: &Tensor) -> Tensor {
        let height = &self.log_weight - &self.logvar * 0.5;
        let curvature = self.logvar.neg().exp() * -0.5;
        let distance = (value.unsqueeze(-1) - &self.mean).square();
        height.addcmul(&distance, &curvature).logsumexp(-1, false)
    }

    /// Returns the log-density of several values under each mixture.
    ///
    /// # Shapes
    /// For mixtures with leading dimension `[N]`: [N, V] to [N, V].
    pub fn log_density(&self, values: &Tensor) -> Tensor {
        let spread = Self {
            log_weight: self.log_weight.unsqueeze(1),
            mean: self.mean.unsqueeze(1),
            logvar: self.logvar.unsqueeze(1),
        };
        spread.log_likelihood(values) - 0.5 * TAU.ln()
    }

    /// Draws `count` values from each mixture, with every standard deviation divided by `temperature`. As in the paper,
    /// values above 1 sharpen. The temperature does not affect the mixture weights.
    ///
    /// # Shapes
    /// For mixtures with leading dimension `[N]`, returns [N, count].
    pub fn sample(&self, count: i64, temperature: f64) -> Tensor {
        let component = self.log_weight.exp().multinomial(count, true); // [N, count]
        let mean = self.mean.gather(1, &component, false);
        let deviation = (&self.logvar * 0.5).exp() / temperature;
        mean.addcmul(&deviation.gather(1, &component, false), &mean.randn_like())
    }

    /// Returns the mixtures of rows `start..start + length` of the first dimension.
    pub fn narrow(&self, start: i64, length: i64) -> Self {
        Self {
            log_weight: self.log_weight.narrow(0, start, length),
            mean: self.mean.narrow(0, start, length),
            logvar: self.logvar.narrow(0, start, length),
        }
    }
}
