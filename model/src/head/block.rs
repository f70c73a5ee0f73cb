//! A causal transformer block whose layer norms are modulated by the condition (official `adaln.py`).
//!
//! Shapes: N tokens, F features, W width, D width of the condition, H heads, C = W / H.

use tch::Tensor;
use tch::nn::{self, Init};

use crate::attention;
use crate::config::MLP_RATIO;
use crate::init::{normal_linear, plain_layer_norm};
use crate::linear::Linear;

/// Initial damping of the rows that scale the residual branches, so that a block starts close to the identity.
const GAMMA_DAMPING: f64 = 1e-5;
/// Initial damping of the rows that scale and shift layer norms.
pub(super) const MODULATION_DAMPING: f64 = 0.5;
/// The softmax scale is this constant divided by the square root of C, instead of the usual 1 / sqrt(C).
const SOFTMAX_SCALE: f64 = 0.25;

/// Self-attention and a feed-forward layer with adaptive layer norm.
#[derive(Debug)]
pub(super) struct Block {
    ada_lin: Linear,
    attention: Attention,
    ffn: FeedForward,
    width: i64,
}

/// The modulation of one block by the condition; each tensor is [N, 1, W].
#[derive(Debug)]
pub(super) struct Modulation {
    gamma1: Tensor,
    gamma2: Tensor,
    scale1: Tensor,
    scale2: Tensor,
    shift1: Tensor,
    shift2: Tensor,
}

impl Block {
    pub(super) fn new(path: &nn::Path<'_>, width: i64, condition: i64, heads: i64, depth: i64) -> Self {
        // This damping keeps the variance of the residual stream independent of the depth.
        let damping = 1.0 / (2.0 * depth as f64).sqrt();
        let ada_lin = normal_linear(path / "ada_lin" / 1, condition, 6 * width, MODULATION_DAMPING);
        tch::no_grad(|| {
            let _ = ada_lin.weight().narrow(0, 0, 2 * width).g_mul_scalar_(GAMMA_DAMPING / MODULATION_DAMPING);
        });
        Self {
            ada_lin,
            attention: Attention::new(&(path / "attn"), width, heads, damping),
            ffn: FeedForward::new(&(path / "ffn"), width, damping),
            width,
        }
    }

    /// Computes the modulation for all features of each token; `activated` is SiLU(z), [N, D].
    pub(super) fn modulation(&self, activated: &Tensor) -> Modulation {
        // The residual stream is float32. Casting here costs once per token rather than once per feature.
        let parts = self.ada_lin.forward(activated).to_kind(activated.kind()).view([-1, 6, 1, self.width]);
        let part = |index| parts.select(1, index);
        Modulation {
            gamma1: part(0),
            gamma2: part(1),
            scale1: part(2) + 1.0,
            scale2: part(3) + 1.0,
            shift1: part(4),
            shift2: part(5),
        }
    }

    /// Applies the block to all features at once with causal attention, [N, F, W] to [N, F, W].
    pub(super) fn forward(&self, features: &Tensor, modulation: &Modulation) -> Tensor {
        self.apply(features, modulation, |normed| self.attention.forward(normed))
    }

    /// Applies the block to the next feature, [N, 1, W] to [N, 1, W], and extends the cache.
    pub(super) fn extend(&self, feature: &Tensor, modulation: &Modulation, cache: &mut Cache) -> Tensor {
        self.apply(feature, modulation, |normed| self.attention.extend(normed, cache))
    }

    /// Returns the layers that follow the model's precision: all of them.
    pub(super) fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        let Self { ada_lin, attention, ffn, .. } = self;
        [ada_lin, &mut attention.mat_qkv, &mut attention.proj, &mut ffn.fc1, &mut ffn.fc2].into_iter()
    }

    fn apply(&self, input: &Tensor, modulation: &Modulation, attend: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
        let m = modulation;
        let normed = modulate(input, &m.scale1, &m.shift1, self.width);
        let attended = input.addcmul(&attend(&normed).to_kind(input.kind()), &m.gamma1);
        let normed = modulate(&attended, &m.scale2, &m.shift2, self.width);
        attended.addcmul(&self.ffn.forward(&normed).to_kind(input.kind()), &m.gamma2)
    }
}

/// Applies layer norm, multiplies by `scale` (which already includes the added one) and adds `shift`.
pub(super) fn modulate(input: &Tensor, scale: &Tensor, shift: &Tensor, width: i64) -> Tensor {
    shift.addcmul(&plain_layer_norm(input, width), scale)
}

/// The cached keys and values of the features decoded so far.
#[derive(Debug)]
pub(super) struct Cache {
    keys: Tensor,
    values: Tensor,
    length: i64,
}

impl Cache {
    /// Creates an empty cache for `features` features of `tokens` tokens on the device of `like`.
    pub(super) fn new(block: &Block, tokens: i64, features: i64, like: &Tensor) -> Self {
        let shape = [tokens, block.attention.heads, features, block.width / block.attention.heads];
        let options = (block.attention.mat_qkv.output_kind(), like.device());
        let empty = || Tensor::empty(shape, options);
        Self { keys: empty(), values: empty(), length: 0 }
    }

    /// Appends a key and a value, each [N, H, 1, C], and returns all keys and values so far.
    fn push(&mut self, key: &Tensor, value: &Tensor) -> (Tensor, Tensor) {
        self.keys.narrow(2, self.length, 1).copy_(key);
        self.values.narrow(2, self.length, 1).copy_(value);
        self.length += 1;
        (self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length))
    }
}

#[derive(Debug)]
struct Attention {
    mat_qkv: Linear,
    q_bias: Tensor,
    v_bias: Tensor,
    zero_k_bias: Tensor,
    proj: Linear,
    heads: i64,
    scale: f64,
}

impl Attention {
    fn new(path: &nn::Path<'_>, width: i64, heads: i64, damping: f64) -> Self {
        let weight = Init::Randn { mean: 0.0, stdev: crate::init::EMBEDDING_STD };
        Self {
            mat_qkv: Linear::without_bias((path / "mat_qkv").var("weight", &[3 * width, width], weight)),
            q_bias: path.zeros("q_bias", &[width]),
            v_bias: path.zeros("v_bias", &[width]),
            zero_k_bias: path.zeros_no_train("zero_k_bias", &[width]),
            proj: normal_linear(path / "proj", width, width, damping),
            heads,
            scale: SOFTMAX_SCALE / ((width / heads) as f64).sqrt(),
        }
    }

    fn forward(&self, features: &Tensor) -> Tensor {
        let (query, key, value) = self.project(features);
        self.mix(&query, &key, &value, true)
    }

    fn extend(&self, feature: &Tensor, cache: &mut Cache) -> Tensor {
        let (query, key, value) = self.project(feature);
        let (keys, values) = cache.push(&key, &value);
        self.mix(&query, &keys, &values, false)
    }

    /// Returns query, key and value, each [N, H, F, C].
    fn project(&self, features: &Tensor) -> (Tensor, Tensor, Tensor) {
        let bias = Tensor::cat(&[&self.q_bias, &self.zero_k_bias, &self.v_bias], 0);
        let (tokens, length) = (features.size()[0], features.size()[1]);
        let qkv = self.mat_qkv.forward_with(features, Some(&bias)).view([tokens, length, 3, self.heads, -1]);
        let qkv = qkv.permute([2, 0, 3, 1, 4]); // [3, N, H, F, C]
        (qkv.get(0), qkv.get(1), qkv.get(2))
    }

    fn mix(&self, query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Tensor {
        let mixed = attention::attend(query, key, value, self.scale, causal);
        let size = query.size();
        self.proj.forward(&mixed.transpose(1, 2).reshape([size[0], size[2], -1])) // [N, F, W]
    }
}

#[derive(Debug)]
struct FeedForward {
    fc1: Linear,
    fc2: Linear,
}

impl FeedForward {
    fn new(path: &nn::Path<'_>, width: i64, damping: f64) -> Self {
        Self {
            fc1: normal_linear(path / "fc1", width, MLP_RATIO * width, 1.0),
            fc2: normal_linear(path / "fc2", MLP_RATIO * width, width, damping),
        }
    }

    fn forward(&self, features: &Tensor) -> Tensor {
        self.fc2.forward(&self.fc1.forward(features).gelu("tanh"))
    }
}
