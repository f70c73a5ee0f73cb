//! Clipping by the global norm of all gradients.

use arinar_collective::host_memory;
use tch::{Kind, Tensor};

/// Elements per partial sum. A fixed size makes the norm independent of the number of threads.
const CHUNK: usize = 1 << 16;
/// Elements per piece of a tensor that is not in host memory. libtorch copies a piece to float64 before it sums it.
const PIECE: i64 = 1 << 24;

/// Returns the Euclidean norm of a flat gradient tensor, summed in float64. It is NaN or infinite if and only if some element
/// is.
pub fn grad_norm(gradients: &Tensor) -> f64 {
    if !host_memory::is_host(gradients) {
        return norm_in_pieces(gradients);
    }
    let elements = host_memory::slice(gradients);
    let mut partial = vec![0.0; elements.len().div_ceil(CHUNK)];
    std::thread::scope(|scope| {
        let mut rest = partial.as_mut_slice();
        for range in host_memory::ranges(elements.len(), host_memory::threads_for(elements.len()), CHUNK) {
            let (mine, others) = rest.split_at_mut(range.len().div_ceil(CHUNK));
            rest = others;
            let part = &elements[range];
            if rest.is_empty() {
                sums_of_squares(part, mine);
            } else {
                scope.spawn(move || sums_of_squares(part, mine));
            }
        }
    });
    partial.iter().sum::<f64>().sqrt()
}

fn norm_in_pieces(gradients: &Tensor) -> f64 {
    let norms: Vec<Tensor> =
        gradients.split(PIECE, 0).iter().map(|piece| piece.norm_scalaropt_dtype(2, Kind::Double)).collect();
    Tensor::stack(&norms, 0).norm().double_value(&[])
}

/// Computes one partial sum per chunk.
fn sums_of_squares(elements: &[f32], sums: &mut [f64]) {
    for (chunk, sum) in elements.chunks(CHUNK).zip(sums) {
        *sum = sum_of_squares(chunk);
    }
}

/// Uses eight running sums, so that the additions overlap.
fn sum_of_squares(elements: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; 8];
    let eights = elements.chunks_exact(8);
    let rest = eights.remainder();
    for eight in eights {
        for (lane, &element) in lanes.iter_mut().zip(eight) {
            *lane += f64::from(element) * f64::from(element);
        }
    }
    let tail: f64 = rest.iter().map(|&element| f64::from(element) * f64::from(element)).sum();
    lanes.iter().sum::<f64>() + tail
}

/// Returns the factor for gradients of this norm: `min(1, max_norm / (norm + 1e-6))`, as in
/// `torch.nn.utils.clip_grad_norm_`.
pub fn clip_coefficient(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn norm_agrees_with_libtorch_for_any_length() {
        for len in [1, 7, 65_536, 65_537, 1_000_003] {
            let gradients = Tensor::arange(len, (Kind::Float, Device::Cpu)).sin();
            let expected = gradients.to_kind(Kind::Double).norm().double_value(&[]);
            let norm = grad_norm(&gradients);
            assert!((norm - expected).abs() <= 1e-12 * expected, "{len}: {norm} {expected}");
        }
        // As on a GPU, in more than one piece.
        let gradients = Tensor::arange(PIECE + 5, (Kind::Float, Device::Cpu)).sin();
        let (norm, expected) = (norm_in_pieces(&gradients), grad_norm(&gradients));
        assert!((norm - expected).abs() <= 1e-12 * expected, "{norm} {expected}");
    }

    #[test]
    fn norm_shows_what_is_not_finite() {
        let mut gradients = Tensor::zeros([100_000], (Kind::Float, Device::Cpu));
        assert_eq!(grad_norm(&gradients), 0.0);
        let _ = gradients.narrow(0, 99_999, 1).fill_(f64::NAN);
        assert!(grad_norm(&gradients).is_nan());
        let _ = gradients.narrow(0, 99_999, 1).fill_(f64::INFINITY);
        assert!(grad_norm(&gradients).is_infinite());
        let _ = gradients.fill_(3e38);
        assert!(grad_norm(&gradients).is_finite());
    }

    #[test]
    fn small_gradients_are_left_alone() {
        assert_eq!(clip_coefficient(2.9, 3.0), 1.0);
        assert!((clip_coefficient(30.0, 3.0) - 0.1).abs() < 1e-8);
    }
}
