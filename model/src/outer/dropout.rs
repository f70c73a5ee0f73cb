//! Dropout with inexpensive random numbers.

use tch::{Kind, Tensor};

/// Number of 16-bit random numbers in one 64-bit draw.
const PER_DRAW: i64 = 4;
/// Number of values of a 16-bit integer.
const LEVELS: f64 = 65_536.0;

/// Dropout that zeroes each element with a given probability and scales up the others.
///
/// libtorch draws from its generator once per element, which on a CPU costs as much as the neighbouring matrix
/// products. Here one draw serves four elements. The probability is rounded to a multiple of 1/65536. For bfloat16
/// tensors it is rounded so that the scale is exactly representable in bfloat16, which preserves the mean: 0.1 becomes
/// 0.0986.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropout {
    single: Rate,
    half: Rate,
}

/// A dropout probability, as an integer threshold and the scale of the elements that are kept.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Elements whose signed 16-bit random number is below this threshold are dropped.
    threshold: i64,
    scale: f64,
}

impl Rate {
    fn new(probability: f64) -> Self {
        let dropped = (probability * LEVELS).round();
        Self { threshold: dropped as i64 + i64::from(i16::MIN), scale: 1.0 / (1.0 - dropped / LEVELS) }
    }

    /// Returns the rate closest to `probability` whose scale is representable in bfloat16.
    fn new_bf16(probability: f64) -> Self {
        let scale = f64::from(f32::from_bits(u32::from(bf16_bits(1.0 / (1.0 - probability))) << 16));
        let Self { threshold, .. } = Self::new(1.0 - 1.0 / scale);
        // The threshold minus one must still be a 16-bit integer.
        Self { threshold: threshold.clamp(i64::from(i16::MIN) + 1, i64::from(i16::MAX)), scale }
    }
}

impl Dropout {
    pub(super) fn new(probability: f64) -> Self {
        Self { single: Rate::new(probability), half: Rate::new_bf16(probability) }
    }

    /// Returns the fraction of elements that is dropped.
    pub(super) fn probability(self) -> f64 {
        1.0 - 1.0 / self.single.scale
    }

    /// Draws a mask of the shape and kind of `tensor` with elements that are either zero or the scale.
    pub(super) fn mask_like(self, tensor: &Tensor) -> Tensor {
        let elements = tensor.numel() as i64;
        let draws = (elements + PER_DRAW - 1) / PER_DRAW;
        let numbers = Tensor::empty([draws], (Kind::Int64, tensor.device())).random_from_(i64::MIN, None);
        let numbers = numbers.view_dtype(Kind::Int16).narrow(0, 0, elements);
        let mask = match tensor.kind() {
            Kind::BFloat16 => self.bf16_mask(numbers),
            kind => numbers.ge(self.single.threshold).to_kind(kind).g_mul_scalar_(self.single.scale),
        };
        mask.view(tensor.size().as_slice())
    }

    /// Converts 16-bit random numbers to a bfloat16 mask in place, with integer operations only. On a CPU, a comparison
    /// followed by a conversion takes ten times as long.
    fn bf16_mask(self, mut numbers: Tensor) -> Tensor {
        let dropped = self.half.threshold - 1;
        // The clamped difference is zero or one; the product is zero or the bits of the scale.
        let mut mask = numbers.clamp_(dropped, self.half.threshold).g_sub_scalar_(dropped);
        mask.g_mul_scalar_(i64::from(bf16_bits(self.half.scale))).view_dtype(Kind::BFloat16)
    }
}

/// Returns the bits of the bfloat16 number nearest to `number`, which must be neither infinite nor NaN.
fn bf16_bits(number: f64) -> u16 {
    const HALF_STEP: u32 = 1 << 15;
    (((number as f32).to_bits() + HALF_STEP) >> 16) as u16
}

/// Applies `dropout` to `tensor`; returns the tensor unchanged for `None`.
pub(super) fn drop(tensor: Tensor, dropout: Option<Dropout>) -> Tensor {
    match dropout {
        Some(dropout) => &tensor * dropout.mask_like(&tensor),
        None => tensor,
    }
}

/// Returns `residual + drop(branch)`, computed in one pass, in the kind of `residual`.
pub(super) fn add_dropped(residual: &Tensor, branch: &Tensor, dropout: Option<Dropout>) -> Tensor {
    let branch = branch.to_kind(residual.kind());
    match dropout {
        Some(dropout) => residual.addcmul(&branch, &dropout.mask_like(&branch)),
        None => residual + branch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn it_drops_the_given_fraction_at_every_position_and_keeps_the_mean() {
        for (probability, kind) in [(0.1, Kind::Float), (0.5, Kind::Float), (0.1, Kind::BFloat16)] {
            let ones = Tensor::ones([1001, 401], (kind, Device::Cpu));
            let dropped = drop(ones.shallow_clone(), Some(Dropout::new(probability)));
            assert!((dropped.mean(Kind::Double).double_value(&[]) - 1.0).abs() < 0.01);
            // Six standard deviations of a fraction of `count` elements, plus the rounding of the probability in
            // bfloat16.
            let limit = |probability: f64, count: usize| {
                let rounding = if kind == Kind::BFloat16 { 1.0 / 256.0 } else { 0.0 };
                6.0 * (probability * (1.0 - probability) / count as f64).sqrt() + rounding
            };
            let zeros = dropped.eq(0.0).to_kind(Kind::Float).flatten(0, 1);
            for offset in 0..PER_DRAW {
                let of_draw = zeros.slice(0, offset, None, PER_DRAW);
                let fraction = of_draw.mean(Kind::Double).double_value(&[]);
                let limit = limit(probability, of_draw.numel());
                assert!((fraction - probability).abs() < limit, "{probability} {offset}: {fraction}");
            }
            // Neighbours within one draw are independent.
            let both = zeros.slice(0, 0, 400_000, 2) * zeros.slice(0, 1, 400_001, 2);
            let fraction = both.mean(Kind::Double).double_value(&[]);
            let limit = limit(probability * probability, both.numel());
            assert!((fraction - probability * probability).abs() < limit, "{fraction}");
        }
    }

    #[test]
    fn in_bfloat16_too_the_mean_is_kept() {
        for probability in [1e-6, 0.02, 0.1, 0.25, 0.3, 0.5] {
            let Dropout { half, .. } = Dropout::new(probability);
            let kept = (i64::from(i16::MAX) + 1 - half.threshold) as f64 / LEVELS;
            assert!((kept * half.scale - 1.0).abs() < 2e-5, "{probability}: {kept} {}", half.scale);
            assert!((1.0 - kept - probability).abs() < 1.0 / 256.0, "{probability} became {}", 1.0 - kept);
            let stored = Tensor::from(half.scale).to_kind(Kind::BFloat16).double_value(&[]);
            assert_eq!(stored, half.scale);
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
