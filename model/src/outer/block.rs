//! A pre-norm vision transformer block: timm's `Block` as used by the official code.
//!
//! Shapes: B samples, N tokens, D width, H heads, C = D / H.

use tch::Tensor;
use tch::nn::{self, Module};

use super::dropout::{Dropout, add_dropped, drop};
use crate::attention;
use crate::config::MLP_RATIO;
use crate::init::{layer_norm, xavier_linear};
use crate::linear::Linear;

/// Self-attention and a feed-forward layer, each with a preceding layer norm and a residual connection.
#[derive(Debug)]
pub struct Block {
    norm1: nn::LayerNorm,
    attention: Attention,
    norm2: nn::LayerNorm,
    mlp: Mlp,
    dropout: Option<Dropout>,
}

impl Block {
    /// Creates a block. `dropout` is the dropout probability for attention weights, projections and the MLP.
    pub fn new(path: &nn::Path<'_>, width: i64, heads: i64, dropout: f64) -> Self {
        Self {
            norm1: layer_norm(path / "norm1", width),
            attention: Attention::new(&(path / "attn"), width, heads),
            norm2: layer_norm(path / "norm2", width),
            mlp: Mlp::new(&(path / "mlp"), width),
            dropout: (dropout > 0.0).then(|| Dropout::new(dropout)),
        }
    }

    /// Applies the block. `train` enables dropout.
    ///
    /// # Shapes
    /// [B, N, D] to [B, N, D].
    pub fn forward(&self, tokens: &Tensor, train: bool) -> Tensor {
        let dropout = self.dropout.filter(|_| train);
        let attended = self.attention.forward(&self.norm1.forward(tokens), dropout);
        let tokens = add_dropped(tokens, &attended, dropout);
        let transformed = self.mlp.forward(&self.norm2.forward(&tokens), dropout);
        add_dropped(&tokens, &transformed, dropout)
    }

    /// Returns the layers that follow the model's precision: all of them.
    pub(crate) fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        [&mut self.attention.qkv, &mut self.attention.proj, &mut self.mlp.fc1, &mut self.mlp.fc2].into_iter()
    }
}

#[derive(Debug)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: i64,
    scale: f64,
}

impl Attention {
    fn new(path: &nn::Path<'_>, width: i64, heads: i64) -> Self {
        Self {
            qkv: xavier_linear(path / "qkv", width, 3 * width),
            proj: xavier_linear(path / "proj", width, width),
            heads,
            scale: 1.0 / ((width / heads) as f64).sqrt(),
        }
    }

    fn forward(&self, tokens: &Tensor, dropout: Option<Dropout>) -> Tensor {
        let (batch, length) = (tokens.size()[0], tokens.size()[1]);
        let qkv = self.qkv.forward(tokens).view([batch, length, 3, self.heads, -1]);
        let qkv = qkv.permute([2, 0, 3, 1, 4]); // [3, B, H, N, C]
        let (query, key, value) = (qkv.get(0), qkv.get(1), qkv.get(2));
        let mixed = match dropout {
            Some(dropout) if query.device().is_cuda() => {
                attention::attend_dropped(&query, &key, &value, self.scale, dropout.probability())
            }
            // libtorch's fused CPU kernel does not support dropout, and its fallback is slower than this.
            Some(_) => drop(attention::weights(&query, &key, self.scale, false), dropout).matmul(&value),
            None => attention::attend(&query, &key, &value, self.scale, false),
        };
        self.proj.forward(&mixed.transpose(1, 2).reshape([batch, length, -1])) // [B, N, D]
    }
}

#[derive(Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    fn new(path: &nn::Path<'_>, width: i64) -> Self {
        Self {
            fc1: xavier_linear(path / "fc1", width, MLP_RATIO * width),
            fc2: xavier_linear(path / "fc2", MLP_RATIO * width, width),
        }
    }

    fn forward(&self, tokens: &Tensor, dropout: Option<Dropout>) -> Tensor {
        self.fc2.forward(&drop(self.fc1.forward(tokens).gelu("none"), dropout))
    }
}
