//! The encoder, which maps an image to the moments of its latent.

use tch::{Tensor, nn};

use super::blocks::{AttentionBlock, Middle, ResnetBlock, conv3x3, conv3x3_stride2, group_norm};
use super::config::VaeConfig;

#[derive(Debug)]
struct Level {
    block: Vec<ResnetBlock>,
    attn: Vec<AttentionBlock>,
    downsample: Option<nn::Conv2D>,
}

#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: nn::Conv2D,
    down: Vec<Level>,
    mid: Middle,
    norm_out: nn::GroupNorm,
    conv_out: nn::Conv2D,
}

impl Encoder {
    pub(super) fn new(path: &nn::Path, config: &VaeConfig) -> Self {
        let last = config.ch_mult.len() - 1;
        let top = config.channels(last);
        Self {
            conv_in: conv3x3(&(path / "conv_in"), 3, config.ch),
            down: (0..=last).map(|level| Level::new(&(path / "down" / level), config, level)).collect(),
            mid: Middle::new(&(path / "mid"), top),
            norm_out: group_norm(&(path / "norm_out"), top),
            conv_out: conv3x3(&(path / "conv_out"), top, 2 * config.embed_dim),
        }
    }

    /// [B, 3, H, W] -> [B, 2C, H/S, W/S]
    pub(super) fn forward(&self, images: &Tensor) -> Tensor {
        let mut x = images.apply(&self.conv_in);
        for level in &self.down {
            x = level.forward(&x);
        }
        self.mid.forward(&x).apply(&self.norm_out).silu().apply(&self.conv_out)
    }
}

impl Level {
    fn new(path: &nn::Path, config: &VaeConfig, level: usize) -> Self {
        let is_last = level + 1 == config.ch_mult.len();
        let outputs = config.channels(level);
        let inputs = if level == 0 { config.ch } else { config.channels(level - 1) };
        let blocks = path / "block";
        let attentions = path / "attn";
        Self {
            block: (0..config.num_res_blocks)
                .map(|i| ResnetBlock::new(&(&blocks / i), if i == 0 { inputs } else { outputs }, outputs))
                .collect(),
            // The official encoder applies attention where its NOMINAL resolution (256, halved at each level) is 16.
            // With the five levels of KL-16 that is the last level, regardless of the actual image size. For other
            // depths, attention is kept in the last level.
            attn: (0..if is_last { config.num_res_blocks } else { 0 })
                .map(|i| AttentionBlock::new(&(&attentions / i), outputs))
                .collect(),
            downsample: (!is_last).then(|| conv3x3_stride2(&(path / "downsample" / "conv"), outputs, outputs)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = x.shallow_clone();
        for (i, block) in self.block.iter().enumerate() {
            x = block.forward(&x);
            if let Some(attention) = self.attn.get(i) {
                x = attention.forward(&x);
            }
        }
        match &self.downsample {
            // LDM pads on the right and at the bottom only.
            Some(conv) => x.constant_pad_nd([0, 1, 0, 1]).apply(conv),
            None => x,
        }
    }
}
