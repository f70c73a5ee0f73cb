//! Reconstruction quality of a VAE on held-out pictures.

use arinar_model::vae::AutoencoderKl;
use tch::{Kind, Tensor};

use super::pictures::to_unit;

/// Number of pictures to encode at once.
const CHUNK: i64 = 128;

/// Quality of the reconstruction from the mean latent, with values clamped to the range of pictures.
pub(super) struct Quality {
    /// Mean of the pictures' PSNR in dB.
    pub(super) mean_psnr: f64,
    /// PSNR of the mean squared error over all pictures in dB, which the worst pictures dominate.
    pub(super) psnr_of_mean_error: f64,
    /// KL divergence per latent element in nats.
    pub(super) kl: f64,
}

impl Quality {
    /// Measures the quality on pictures with `levels` u8 [N, 3, S, S].
    pub(super) fn measure(vae: &AutoencoderKl, levels: &Tensor) -> Self {
        tch::no_grad(|| {
            let mut errors = Vec::new();
            let mut kl = Vec::new();
            for chunk in levels.split(CHUNK, 0) {
                let images = to_unit(&chunk);
                let moments = vae.encode(&images);
                let decoded = vae.decode(&moments.mean).clamp(-1.0, 1.0);
                errors.push((decoded - images).square().mean_dim([1i64, 2, 3].as_slice(), false, Kind::Double));
                kl.push(moments.kl().mean_dim([1i64, 2, 3].as_slice(), false, Kind::Double));
            }
            let errors = Tensor::cat(&errors, 0);
            let decibels = |mean_squared: &Tensor| (mean_squared / 4.0).log10() * -10.0; // the range is 2 wide
            Self {
                mean_psnr: decibels(&errors).mean(Kind::Double).double_value(&[]),
                psnr_of_mean_error: decibels(&errors.mean(Kind::Double)).double_value(&[]),
                kl: Tensor::cat(&kl, 0).mean(Kind::Double).double_value(&[]),
            }
        })
    }
}

/// Returns the standard deviation of posterior samples over all elements. Its inverse is the latent scale.
pub(super) fn latent_std(vae: &AutoencoderKl, levels: &Tensor) -> f64 {
    tch::no_grad(|| {
        let sample = levels.narrow(0, 0, levels.size()[0].min(8 * CHUNK));
        let moments: Vec<Tensor> = sample
            .split(CHUNK, 0)
            .iter()
            .map(|chunk| {
                let moments = vae.encode(&to_unit(chunk));
                // E[z^2] of a posterior sample without drawing one: mean^2 + variance.
                Tensor::stack(&[moments.mean.square() + moments.logvar.exp(), moments.mean], 0)
            })
            .collect();
        let moments =
            Tensor::cat(&moments, 1).to_kind(Kind::Double).mean_dim([1i64, 2, 3, 4].as_slice(), false, Kind::Double);
        let (second, mean) = (moments.double_value(&[0]), moments.double_value(&[1]));
        (second - mean * mean).max(f64::MIN_POSITIVE).sqrt()
    })
}
