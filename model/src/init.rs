//! Layers with the official initialisation, drawn from libtorch's generator.
//!
//! The outer layer follows `MAR.initialize_weights` (Xavier-uniform matrices, zero biases). The inner layer follows
//! `ARHead.init_weights` (normal matrices, some of them damped).

use tch::nn::{self, Init};

use crate::linear::Linear;

/// Standard deviation of every embedding and of the head's matrices.
pub(crate) const EMBEDDING_STD: f64 = 0.02;

/// Epsilon of every layer norm (not libtorch's default).
const LAYER_NORM_EPS: f64 = 1e-6;

/// Creates a linear layer of the outer model.
pub(crate) fn xavier_linear(path: nn::Path<'_>, inputs: i64, outputs: i64) -> Linear {
    let bound = (6.0 / (inputs + outputs) as f64).sqrt();
    linear(path, inputs, outputs, Init::Uniform { lo: -bound, up: bound })
}

/// Creates a linear layer of the head; `damping` multiplies its initial weights.
///
/// The official code truncates the normal distribution at +-2, which has no effect at this standard deviation.
pub(crate) fn normal_linear(path: nn::Path<'_>, inputs: i64, outputs: i64, damping: f64) -> Linear {
    linear(path, inputs, outputs, Init::Randn { mean: 0.0, stdev: EMBEDDING_STD * damping })
}

fn linear(path: nn::Path<'_>, inputs: i64, outputs: i64, weights: Init) -> Linear {
    let config = nn::LinearConfig { ws_init: weights, bs_init: Some(Init::Const(0.0)), bias: true };
    Linear::new(nn::linear(path, inputs, outputs, config))
}

/// Creates a table of learned vectors.
pub(crate) fn embedding(path: &nn::Path<'_>, name: &str, shape: &[i64]) -> tch::Tensor {
    path.var(name, shape, Init::Randn { mean: 0.0, stdev: EMBEDDING_STD })
}

/// Creates a layer norm with weight and bias.
pub(crate) fn layer_norm(path: nn::Path<'_>, width: i64) -> nn::LayerNorm {
    nn::layer_norm(path, vec![width], nn::LayerNormConfig { eps: LAYER_NORM_EPS, ..Default::default() })
}

/// Applies layer norm over the last dimension without weight and bias, for layers with their own modulation.
pub(crate) fn plain_layer_norm(tensor: &tch::Tensor, width: i64) -> tch::Tensor {
    tensor.layer_norm([width], None::<tch::Tensor>, None::<tch::Tensor>, LAYER_NORM_EPS, true)
}
