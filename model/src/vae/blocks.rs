//! Building blocks shared by the encoder and the decoder of the autoencoder.

use tch::{Tensor, nn};

const NORM_GROUPS: i64 = 32;
const NORM_EPS: f64 = 1e-6;

pub(super) fn conv1x1(path: &nn::Path, inputs: i64, outputs: i64) -> nn::Conv2D {
    conv(path, inputs, outputs, 1, nn::ConvConfig::default())
}

pub(super) fn conv3x3(path: &nn::Path, inputs: i64, outputs: i64) -> nn::Conv2D {
    conv(path, inputs, outputs, 3, nn::ConvConfig { padding: 1, ..Default::default() })
}

/// Creates a convolution that halves the height and width of an input that is already padded.
pub(super) fn conv3x3_stride2(path: &nn::Path, inputs: i64, outputs: i64) -> nn::Conv2D {
    conv(path, inputs, outputs, 3, nn::ConvConfig { stride: 2, ..Default::default() })
}

/// Creates a convolution with PyTorch's default initialisation, as in the official autoencoder: weight and bias are
/// uniform in +-1 / sqrt(fan_in).
fn conv(path: &nn::Path, inputs: i64, outputs: i64, kernel: i64, config: nn::ConvConfig) -> nn::Conv2D {
    let bound = ((inputs * kernel * kernel) as f64).powf(-0.5);
    let uniform = nn::Init::Uniform { lo: -bound, up: bound };
    nn::conv2d(path, inputs, outputs, kernel, nn::ConvConfig { ws_init: uniform, bs_init: uniform, ..config })
}

pub(super) fn group_norm(path: &nn::Path, channels: i64) -> nn::GroupNorm {
    nn::group_norm(path, NORM_GROUPS, channels, nn::GroupNormConfig { eps: NORM_EPS, ..Default::default() })
}

/// Two 3x3 convolutions, each preceded by GroupNorm and swish, with a residual connection.
#[derive(Debug)]
pub(super) struct ResnetBlock {
    norm1: nn::GroupNorm,
    conv1: nn::Conv2D,
    norm2: nn::GroupNorm,
    conv2: nn::Conv2D,
    nin_shortcut: Option<nn::Conv2D>,
}

impl ResnetBlock {
    pub(super) fn new(path: &nn::Path, inputs: i64, outputs: i64) -> Self {
        Self {
            norm1: group_norm(&(path / "norm1"), inputs),
            conv1: conv3x3(&(path / "conv1"), inputs, outputs),
            norm2: group_norm(&(path / "norm2"), outputs),
            conv2: conv3x3(&(path / "conv2"), outputs, outputs),
            nin_shortcut: (inputs != outputs).then(|| conv1x1(&(path / "nin_shortcut"), inputs, outputs)),
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = x.apply(&self.norm1).silu().apply(&self.conv1);
        let hidden = hidden.apply(&self.norm2).silu().apply(&self.conv2);
        match &self.nin_shortcut {
            Some(shortcut) => x.apply(shortcut) + hidden,
            None => x + hidden,
        }
    }
}

/// Single-head self-attention over all positions of a feature map.
#[derive(Debug)]
pub(super) struct AttentionBlock {
    norm: nn::GroupNorm,
    q: nn::Conv2D,
    k: nn::Conv2D,
    v: nn::Conv2D,
    proj_out: nn::Conv2D,
}

impl AttentionBlock {
    pub(super) fn new(path: &nn::Path, channels: i64) -> Self {
        let projection = |name: &str| conv1x1(&(path / name), channels, channels);
        Self {
            norm: group_norm(&(path / "norm"), channels),
            q: projection("q"),
            k: projection("k"),
            v: projection("v"),
            proj_out: projection("proj_out"),
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let normed = x.apply(&self.norm);
        let q = normed.apply(&self.q).flatten(2, 3); // [B, C, N]
        let k = normed.apply(&self.k).flatten(2, 3); // [B, C, N]
        let v = normed.apply(&self.v).flatten(2, 3); // [B, C, N]
        let scale = (q.size()[1] as f64).powf(-0.5);
        let weights = (q.transpose(1, 2).matmul(&k) * scale).softmax(-1, None); // [B, N, N]
        let mixed = v.matmul(&weights.transpose(1, 2)).view_as(x); // [B, C, H, W]
        x + mixed.apply(&self.proj_out)
    }
}

/// The middle of the encoder and of the decoder: a residual block, attention, and a residual block.
#[derive(Debug)]
pub(super) struct Middle {
    block_1: ResnetBlock,
    attn_1: AttentionBlock,
    block_2: ResnetBlock,
}

impl Middle {
    pub(super) fn new(path: &nn::Path, channels: i64) -> Self {
        Self {
            block_1: ResnetBlock::new(&(path / "block_1"), channels, channels),
            attn_1: AttentionBlock::new(&(path / "attn_1"), channels),
            block_2: ResnetBlock::new(&(path / "block_2"), channels, channels),
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        self.block_2.forward(&self.attn_1.forward(&self.block_1.forward(x)))
    }
}
