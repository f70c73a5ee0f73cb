//! Sizes of the tokenizer, with presets.

use serde::{Deserialize, Serialize};

/// Scale of the official KL-16 latents: a training latent is `(mean + std * noise) * 0.2325`.
pub const KL16_SCALE: f64 = 0.2325;

/// Sizes of an [`AutoencoderKl`](super::AutoencoderKl).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// Channels of the first level; a multiple of the 32 groups of GroupNorm.
    pub ch: i64,
    /// Channel multiplier of each level; every level except the last halves the image.
    pub ch_mult: Vec<i64>,
    /// Residual blocks per level (the decoder has one more).
    pub num_res_blocks: i64,
    /// Latent channels.
    pub embed_dim: i64,
}

impl VaeConfig {
    /// The 66,456,019-parameter tokenizer of MAR and ARINAR: stride 16, 16 channels.
    pub fn kl16() -> Self {
        Self { ch: 128, ch_mult: vec![1, 1, 2, 2, 4], num_res_blocks: 2, embed_dim: 16 }
    }

    /// A tokenizer for 32x32 images: stride 8 and 16 channels, which gives 16 tokens per image.
    pub fn small() -> Self {
        Self { ch: 32, ch_mult: vec![1, 1, 3, 4], num_res_blocks: 1, embed_dim: 16 }
    }

    /// Pixels per latent position along one side.
    pub fn stride(&self) -> i64 {
        1 << (self.ch_mult.len().saturating_sub(1))
    }

    /// Checks every size.
    ///
    /// # Errors
    /// Returns a message that names the invalid size and valid values.
    pub fn validate(&self) -> Result<(), String> {
        let levels = self.ch_mult.len();
        if self.ch < 32 || self.ch % 32 != 0 {
            return Err(format!("ch {} is not a multiple of 32 (GroupNorm has 32 groups); use 32, 64 or 128", self.ch));
        }
        if levels == 0 || levels > 8 || self.ch_mult.iter().any(|&multiplier| multiplier < 1) {
            return Err(format!("ch_mult {:?} must be 1 to 8 positive multipliers, like 1,2,2,4", self.ch_mult));
        }
        if self.num_res_blocks < 1 || self.embed_dim < 1 {
            return Err("num_res_blocks and embed_dim must be at least 1".to_owned());
        }
        Ok(())
    }

    /// Returns the number of channels at `level`; level 0 is the finest.
    pub(super) fn channels(&self, level: usize) -> i64 {
        self.ch * self.ch_mult[level]
    }
}
