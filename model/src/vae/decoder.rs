//! The decoder, which maps a latent to an image.

use tch::{Tensor, nn};

use super::blocks::{Middle, ResnetBlock, conv3x3, group_norm};
use super::config::VaeConfig;

#[derive(Debug)]
struct Level {
    block: Vec<ResnetBlock>,
    upsample: Option<nn::Conv2D>,
}

#[derive(Debug)]
pub(super) struct Decoder {
    conv_in: nn::Conv2D,
    mid: Middle,
    /// Coarsest level first: the decoder starts with the level that the official names call `up.{last}`.
    up: Vec<Level>,
    norm_out: nn::GroupNorm,
    conv_out: nn::Conv2D,
}

impl Decoder {
    pub(super) fn new(path: &nn::Path, config: &VaeConfig) -> Self {
        let last = config.ch_mult.len() - 1;
        let top = config.channels(last);
        Self {
            conv_in: conv3x3(&(path / "conv_in"), config.embed_dim, top),
            mid: Middle::new(&(path / "mid"), top),
            up: (0..=last).rev().map(|level| Level::new(&(path / "up" / level), config, level)).collect(),
            norm_out: group_norm(&(path / "norm_out"), config.channels(0)),
            conv_out: conv3x3(&(path / "conv_out"), config.channels(0), 3),
        }
    }

    /// [B, C, h, w] -> [B, 3, h*S, w*S]
    pub(super) fn forward(&self, latents: &Tensor) -> Tensor {
        let mut x = self.mid.forward(&latents.apply(&self.conv_in));
        for level in &self.up {
            x = level.forward(&x);
        }
        x.apply(&self.norm_out).silu().apply(&self.conv_out)
    }
}

impl Level {
    fn new(path: &nn::Path, config: &VaeConfig, level: usize) -> Self {
        let outputs = config.channels(level);
        let coarser = (level + 1).min(config.ch_mult.len() - 1);
        let inputs = config.channels(coarser);
        let blocks = path / "block";
        Self {
            block: (0..=config.num_res_blocks)
                .map(|i| ResnetBlock::new(&(&blocks / i), if i == 0 { inputs } else { outputs }, outputs))
                .collect(),
            upsample: (level != 0).then(|| conv3x3(&(path / "upsample" / "conv"), outputs, outputs)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = x.shallow_clone();
        for block in &self.block {
            x = block.forward(&x);
        }
        match &self.upsample {
            Some(conv) => {
                let size = x.size(); // [B, C, h, w]
                x.upsample_nearest2d([2 * size[2], 2 * size[3]], None, None).apply(conv)
            }
            None => x,
        }
    }
}
