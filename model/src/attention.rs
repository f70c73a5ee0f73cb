//! Scaled dot-product attention.
//!
//! Shapes: ... any leading dimensions, N queries, M keys, C features per head.

use tch::{Device, Kind, Tensor};

/// Longest sequence for which materialising the attention weights is cheaper on a GPU than a fused kernel.
const SHORT: i64 = 32;

/// Computes scaled dot-product attention. With `causal`, query i does not attend to the keys after i.
///
/// # Shapes
/// `query` [..., N, C], `key` and `value` [..., M, C]; returns [..., N, C].
pub(crate) fn attend(query: &Tensor, key: &Tensor, value: &Tensor, scale: f64, causal: bool) -> Tensor {
    let plain = match query.device() {
        // In bfloat16, libtorch's fused CPU kernel takes two to four times as long as its matrix products.
        Device::Cpu => query.kind() == Kind::BFloat16,
        // The head has thousands of sequences of length 16. Fused GPU kernels index them with 32 bits and pad each to a
        // tile of 64 or 128, and FlashAttention's backward pass accesses the wrong memory beyond 21,845 of them.
        _ => key.size()[key.dim() - 2] <= SHORT,
    };
    if plain {
        return weights(query, key, scale, causal).matmul(value);
    }
    Tensor::scaled_dot_product_attention(query, key, value, None::<&Tensor>, 0.0, causal, scale, false)
}

/// Like [`attend`], but drops each attention weight with the given probability. Fused GPU kernels do so without
/// materialising the weights.
pub(crate) fn attend_dropped(query: &Tensor, key: &Tensor, value: &Tensor, scale: f64, probability: f64) -> Tensor {
    Tensor::scaled_dot_product_attention(query, key, value, None::<&Tensor>, probability, false, scale, false)
}

/// Computes the attention weights of each query, which sum to one over the keys.
///
/// # Shapes
/// `query` [..., N, C], `key` [..., M, C]; returns [..., N, M].
pub(crate) fn weights(query: &Tensor, key: &Tensor, scale: f64, causal: bool) -> Tensor {
    let scores = (query * scale).matmul(&key.transpose(-2, -1));
    let scores = if causal { scores + later_keys(query, key) } else { scores };
    scores.softmax(-1, None::<Kind>)
}

/// Returns [N, M], minus infinity where the key comes after the query and zero elsewhere.
fn later_keys(query: &Tensor, key: &Tensor) -> Tensor {
    let (queries, keys) = (query.size()[query.dim() - 2], key.size()[key.dim() - 2]);
    Tensor::full([queries, keys], f64::NEG_INFINITY, (query.kind(), query.device())).triu(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_mean() {
        let options = (Kind::Float, Device::Cpu);
        let (query, key) = (Tensor::zeros([64, 50, 8], options), Tensor::zeros([64, 50, 8], options));
        let value = Tensor::ones([64, 50, 8], options);
        let mixed = attend_dropped(&query, &key, &value, 1.0, 0.3);
        assert!((mixed.mean(Kind::Double).double_value(&[]) - 1.0).abs() < 0.01);
        assert!(mixed.std(true).double_value(&[]) > 0.05, "nothing is dropped");
    }

    #[test]
    fn fused_and_plain_attention_agree() {
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
