//! The distribution of an image's latent.

use tch::Tensor;

/// A diagonal Gaussian over latents, as predicted by the encoder.
pub struct Moments {
    /// Mean, [B, C, H/S, W/S].
    pub mean: Tensor,
    /// Log-variance clamped to [-30, 20], [B, C, H/S, W/S].
    pub logvar: Tensor,
}

impl Moments {
    /// Splits the encoder's output, [B, 2C, H/S, W/S], into mean and log-variance and clamps the latter.
    pub fn from_concatenated(moments: &Tensor) -> Self {
        let halves = moments.chunk(2, 1);
        Self { mean: halves[0].shallow_clone(), logvar: halves[1].clamp(-30.0, 20.0) }
    }

    /// Concatenates mean and clamped log-variance, [B, 2C, H/S, W/S]. Shards store this tensor.
    pub fn concatenated(&self) -> Tensor {
        Tensor::cat(&[&self.mean, &self.logvar], 1)
    }

    /// Returns the unscaled latent `mean + std * noise`; `noise` is standard normal, [B, C, H/S, W/S].
    pub fn sample(&self, noise: &Tensor) -> Tensor {
        &self.mean + (&self.logvar * 0.5).exp() * noise
    }

    /// Returns the Kullback-Leibler divergence from the standard normal in nats, [B, C, H/S, W/S].
    pub fn kl(&self) -> Tensor {
        (self.mean.square() + self.logvar.exp() - 1.0 - &self.logvar) * 0.5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_a_gaussian_with_clamped_log_variance() {
        let encoded = Tensor::from_slice(&[1.0_f32, -2.0, 50.0, -40.0]).view([1, 4, 1, 1]);
        let moments = Moments::from_concatenated(&encoded);
        let flat = |tensor: &Tensor| Vec::<f64>::try_from(tensor.view(-1)).expect("numbers");
        assert_eq!(flat(&moments.mean), [1.0, -2.0]);
        assert_eq!(flat(&moments.logvar), [20.0, -30.0]);
        assert_eq!(flat(&moments.concatenated()), [1.0, -2.0, 20.0, -30.0]);
        // The divergence of the standard normal from itself is 0; with mean 1 and standard deviation 2 it is 2 - ln 2.
        let kl = |mean: f32, logvar: f32| {
            flat(&Moments::from_concatenated(&Tensor::from_slice(&[mean, logvar]).view([1, 2, 1, 1])).kl())[0]
        };
        assert_eq!(kl(0.0, 0.0), 0.0);
        assert!((kl(1.0, 2.0 * 2.0_f32.ln()) - (2.0 - 2.0_f64.ln())).abs() < 1e-6);
        let noise = Tensor::from_slice(&[3.0_f32]).view([1, 1, 1, 1]);
        let quarter = Moments::from_concatenated(&Tensor::from_slice(&[1.0, 0.25_f32.ln()]).view([1, 2, 1, 1]));
        assert!((flat(&quarter.sample(&noise))[0] - 2.5).abs() < 1e-6);
    }
}
