//! Mixtures of one-dimensional Gaussians.
//!
//! Shapes: ... any leading dimensions, K Gaussians.

use std::f64::consts::TAU;

use tch::{Kind, Tensor};

/// A mixture for every element of the leading dimensions.
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
    /// Takes apart the output of the head: K means, K log-variances, K weight logits.
    ///
    /// # Shapes
    /// [..., 3K].
    pub fn from_raw(raw: &Tensor) -> Self {
        let parts = raw.chunk(3, -1);
        Self {
            log_weight: parts[2].log_softmax(-1, None::<Kind>),
            mean: parts[0].shallow_clone(),
            logvar: parts[1].shallow_clone(),
        }
    }

    /// Log-density of `value` WITHOUT the constant -log(2 pi)/2, which the training loss leaves out.
    ///
    /// # Shapes
    /// [...] to [...].
    pub fn log_likelihood(&self, value: &Tensor) -> Tensor {
        let height = &self.log_weight - &self.logvar * 0.5;
        let curvature = self.logvar.neg().exp() * -0.5;
        let distance = (value.unsqueeze(-1) - &self.mean).square();
        height.addcmul(&distance, &curvature).logsumexp(-1, false)
    }

    /// Log-density of several values each.
    ///
    /// # Shapes
    /// For a mixture with leading dimension `[N]`: [N, V] to [N, V].
    pub fn log_density(&self, values: &Tensor) -> Tensor {
        let spread = Self {
            log_weight: self.log_weight.unsqueeze(1),
            mean: self.mean.unsqueeze(1),
            logvar: self.logvar.unsqueeze(1),
        };
        spread.log_likelihood(values) - 0.5 * TAU.ln()
    }

    /// Draws `count` values each, with every standard deviation divided by `temperature`: above 1 sharpens
    /// (the paper's direction). Weights are never tempered.
    ///
    /// # Shapes
    /// For a mixture with leading dimension `[N]`: [N, count].
    pub fn sample(&self, count: i64, temperature: f64) -> Tensor {
        let component = self.log_weight.exp().multinomial(count, true); // [N, count]
        let mean = self.mean.gather(1, &component, false);
        let deviation = (&self.logvar * 0.5).exp() / temperature;
        mean.addcmul(&deviation.gather(1, &component, false), &mean.randn_like())
    }

    /// The mixtures of rows `start..start + length` of the first dimension.
    pub fn narrow(&self, start: i64, length: i64) -> Self {
        Self {
            log_weight: self.log_weight.narrow(0, start, length),
            mean: self.mean.narrow(0, start, length),
            logvar: self.logvar.narrow(0, start, length),
        }
    }
}
