//! Scaled dot-product attention.
//!
//! Shapes: ... any leading dimensions, N queries, M keys, C features of a head.

use tch::{Device, Kind, Tensor};

/// Sequences up to this length are short: their table of weights costs less than what fused kernels do around it.
const SHORT: i64 = 32;

/// What each query makes of the values; `causal` hides from query i the keys after i.
///
/// # Shapes
/// `query` [..., N, C], `key` and `value` [..., M, C]; returns [..., N, C].
pub(crate) fn attend(query: &Tensor, key: &Tensor, value: &Tensor, scale: f64, causal: bool) -> Tensor {
    let plain = match query.device() {
        // libtorch's fused kernel for CPUs takes two to four times as long in bfloat16 as its matrix products.
        Device::Cpu => query.kind() == Kind::BFloat16,
        // The head has many thousand sequences of 16: fused kernels for GPUs count them with 32 bits, pad each to a
        // tile of 64 or 128, and FlashAttention's backward pass addresses wrong memory past 21,845 of them.
        _ => key.size()[key.dim() - 2] <= SHORT,
    };
    if plain {
        return weights(query, key, scale, causal).matmul(value);
    }
    Tensor::scaled_dot_product_attention(query, key, value, None::<&Tensor>, 0.0, causal, scale, false)
}

/// As [`attend`], with each weight dropped with a probability; without the table of weights where a GPU's kernel can.
pub(crate) fn attend_dropped(query: &Tensor, key: &Tensor, value: &Tensor, scale: f64, probability: f64) -> Tensor {
    Tensor::scaled_dot_product_attention(query, key, value, None::<&Tensor>, probability, false, scale, false)
}

/// How much each query attends to each key: rows that sum to one.
///
/// # Shapes
/// As [`attend`]; returns [..., N, M].
pub(crate) fn weights(query: &Tensor, key: &Tensor, scale: f64, causal: bool) -> Tensor {
    let scores = (query * scale).matmul(&key.transpose(-2, -1));
    let scores = if causal { scores + later_keys(query, key) } else { scores };
    scores.softmax(-1, None::<Kind>)
}

/// Minus infinity for every key after the query, else zero, [N, M].
fn later_keys(query: &Tensor, key: &Tensor) -> Tensor {
    let (queries, keys) = (query.size()[query.dim() - 2], key.size()[key.dim() - 2]);
    Tensor::full([queries, keys], f64::NEG_INFINITY, (query.kind(), query.device())).triu(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_keeps_the_mean() {
        let options = (Kind::Float, Device::Cpu);
        let (query, key) = (Tensor::zeros([64, 50, 8], options), Tensor::zeros([64, 50, 8], options));
        let value = Tensor::ones([64, 50, 8], options);
        let mixed = attend_dropped(&query, &key, &value, 1.0, 0.3);
        assert!((mixed.mean(Kind::Double).double_value(&[]) - 1.0).abs() < 0.01);
        assert!(mixed.std(true).double_value(&[]) > 0.05, "nothing is dropped");
    }

    #[test]
    fn both_ways_are_the_same_attention() {
        tch::manual_seed(1);
        let options = (Kind::Float, Device::Cpu);
        for (queries, keys, causal) in [(5, 5, false), (6, 6, true), (1, 4, false)] {
            let query = Tensor::randn([2, 3, queries, 8], options);
            let (key, value) = (Tensor::randn([2, 3, keys, 8], options), Tensor::randn([2, 3, keys, 8], options));
            let fused = attend(&query, &key, &value, 0.3, causal);
            let plain = weights(&query, &key, 0.3, causal).matmul(&value);
            assert!((&fused - &plain).abs().max().double_value(&[]) < 1e-6);
            let half = |tensor: &Tensor| tensor.to_kind(Kind::BFloat16);
            let rounded = attend(&half(&query), &half(&key), &half(&value), 0.3, causal);
            assert_eq!(rounded.kind(), Kind::BFloat16);
            assert!((rounded - fused).abs().max().double_value(&[]) < 0.05);
        }
    }
}
