//! Dropout with cheap random numbers.

use tch::{Kind, Tensor};

/// Random numbers cut from one 64-bit draw.
const PER_DRAW: i64 = 4;
/// Values of a 16-bit number.
const LEVELS: f64 = 65_536.0;

/// Zeroes each element with a probability and scales up the others.
///
/// libtorch spends one draw of its generator on every element, which on a CPU costs as much as the matrix
/// products nearby; here one draw serves four. The probability is rounded to 1/65536.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropout {
    /// Elements whose 16-bit number (signed) is below this are dropped.
    threshold: i64,
    scale: f64,
}

impl Dropout {
    pub(super) fn new(probability: f64) -> Self {
        let dropped = (probability * LEVELS).round();
        Self { threshold: dropped as i64 + i64::from(i16::MIN), scale: 1.0 / (1.0 - dropped / LEVELS) }
    }

    /// What to multiply a tensor of this shape by: zero or the scale.
    pub(super) fn mask_like(self, tensor: &Tensor) -> Tensor {
        let elements = tensor.numel() as i64;
        let draws = (elements + PER_DRAW - 1) / PER_DRAW;
        let numbers = Tensor::empty([draws], (Kind::Int64, tensor.device())).random_from_(i64::MIN, None);
        let kept = numbers.view_dtype(Kind::Int16).narrow(0, 0, elements).ge(self.threshold);
        kept.to_kind(tensor.kind()).g_mul_scalar_(self.scale).view(tensor.size().as_slice())
    }
}

/// `tensor` with dropout, if any.
pub(super) fn drop(tensor: Tensor, dropout: Option<Dropout>) -> Tensor {
    match dropout {
        Some(dropout) => &tensor * dropout.mask_like(&tensor),
        None => tensor,
    }
}

/// `residual + drop(branch)` in one pass.
pub(super) fn add_dropped(residual: &Tensor, branch: &Tensor, dropout: Option<Dropout>) -> Tensor {
    match dropout {
        Some(dropout) => residual.addcmul(branch, &dropout.mask_like(branch)),
        None => residual + branch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn it_drops_the_given_share_at_every_place_and_keeps_the_mean() {
        for probability in [0.1, 0.5] {
            let ones = Tensor::ones([1001, 401], (Kind::Float, Device::Cpu));
            let dropped = drop(ones.shallow_clone(), Some(Dropout::new(probability)));
            assert!((dropped.mean(Kind::Double).double_value(&[]) - 1.0).abs() < 0.01);
            let zeros = dropped.eq(0.0).to_kind(Kind::Float).flatten(0, 1);
            for offset in 0..PER_DRAW {
                let share = zeros.slice(0, offset, None, PER_DRAW).mean(Kind::Double).double_value(&[]);
                assert!((share - probability).abs() < 0.006, "{probability} {offset}: {share}");
            }
            // Neighbours in one draw are independent.
            let both = zeros.slice(0, 0, 400_000, 2) * zeros.slice(0, 1, 400_001, 2);
            let share = both.mean(Kind::Double).double_value(&[]);
            assert!((share - probability * probability).abs() < 0.006, "{share}");
        }
    }

    #[test]
    fn the_residual_form_is_the_plain_form() {
        let dropout = Some(Dropout::new(0.3));
        let branch = Tensor::arange(1000, (Kind::Float, Device::Cpu)) + 1.0;
        let sum = add_dropped(&Tensor::ones_like(&branch), &branch, dropout);
        let scaled = (&sum - 1.0) / &branch;
        let scale = 1.0 / 0.7;
        let near = |value: f64| (&scaled - value).abs().lt(1e-3);
        assert!(bool::try_from(near(0.0).logical_or(&near(scale)).all()).unwrap());
        assert_eq!(add_dropped(&branch, &branch, None), &branch * 2.0);
    }
}
