//! The configuration of a model, as written in a configuration file, and named presets.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Ratio of the hidden width of every feed-forward layer to its input width.
pub(crate) const MLP_RATIO: i64 = 4;

/// An invalid model configuration or sampling option. Messages name a valid value.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ConfigError {
    /// A size is below its minimum.
    #[error("model.{key} is {value}; it must be at least {least}")]
    TooSmall {
        /// Path of the key below `model`.
        key: &'static str,
        /// Its value.
        value: i64,
        /// The smallest valid value.
        least: i64,
    },
    /// The image cannot be divided into tokens.
    #[error(
        "model.image_size {image_size} is not divisible by model.vae.stride {stride}; use {} or {}",
        image_size / stride * stride, (image_size / stride + 1) * stride
    )]
    ImageSize {
        /// Pixels along one side.
        image_size: i64,
        /// Pixels per token along one side.
        stride: i64,
    },
    /// The width cannot be divided equally among the attention heads.
    #[error("model.{layer}.width {width} is not divisible by model.{layer}.heads {heads}; use {nearest} heads")]
    Heads {
        /// `outer` or `head`.
        layer: &'static str,
        /// Width of the layer.
        width: i64,
        /// Its number of attention heads.
        heads: i64,
        /// The nearest smaller number of heads that divides the width.
        nearest: i64,
    },
    /// A real number is out of range.
    #[error("model.{key} is {value}; it must be {range}")]
    OutOfRange {
        /// Path of the key below `model`.
        key: &'static str,
        /// Its value.
        value: f64,
        /// The range in words.
        range: &'static str,
    },
    /// A class label does not exist in the model.
    #[error("class {label} does not exist; this model has classes 0 to {}", classes - 1)]
    Label {
        /// The label.
        label: i64,
        /// Number of classes.
        classes: i64,
    },
    /// A sampling option is out of range.
    #[error("{option} is {value}; it must be {range}")]
    Sampling {
        /// Name of the option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// The range in words.
        range: &'static str,
    },
}

/// The configuration of a model, which determines all of its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Pixels along one side of an image.
    pub image_size: i64,
    /// Number of classes, without the null class.
    pub classes: i64,
    /// The tokenizer's latents.
    pub vae: LatentConfig,
    /// The outer autoregressive layer.
    pub outer: OuterConfig,
    /// The inner autoregressive layer.
    pub head: HeadConfig,
}

/// The shape and scale of the tokenizer's latents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentConfig {
    /// Pixels per token along one side.
    pub stride: i64,
    /// Features per token.
    pub channels: i64,
    /// Factor from the VAE's latents to tokens of about unit variance.
    pub scale: f64,
}

/// The kind of outer layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OuterKind {
    /// Masked autoregression with an encoder and a decoder (arXiv 2406.11838).
    #[default]
    Mar,
}

/// The configuration of the outer layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OuterConfig {
    /// Kind of layer.
    pub kind: OuterKind,
    /// Embedding width of encoder and decoder.
    pub width: i64,
    /// Number of attention heads.
    pub heads: i64,
    /// Number of encoder blocks.
    pub encoder_depth: i64,
    /// Number of decoder blocks.
    pub decoder_depth: i64,
    /// Number of tokens in front of the sequence that hold the class embedding.
    pub buffer_tokens: i64,
    /// Smallest fraction of tokens masked in training.
    pub mask_ratio_min: f64,
    /// Dropout probability of attention weights and projections.
    pub dropout: f64,
    /// Probability of replacing the label by the null class in training.
    pub label_drop: f64,
}

/// The kind of inner layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadKind {
    /// Autoregression over the features of a token (arXiv 2503.02883).
    #[default]
    Arinar,
}

/// The configuration of the inner layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// Kind of layer.
    pub kind: HeadKind,
    /// Embedding width.
    pub width: i64,
    /// Number of blocks.
    pub depth: i64,
    /// Number of attention heads.
    pub heads: i64,
    /// Number of Gaussians in the mixture of each feature.
    pub gaussians: i64,
}

impl ModelConfig {
    /// Returns the configuration of ARINAR-B on ImageNet 256x256: 212,949,516 parameters, of which 12,423,180 are in
    /// the head (section 4.1 of the paper; 14 + 14 blocks as in the released code).
    pub fn arinar_b() -> Self {
        Self {
            image_size: 256,
            classes: 1000,
            vae: LatentConfig { stride: 16, channels: 16, scale: 0.2325 },
            outer: OuterConfig {
                kind: OuterKind::Mar,
                width: 768,
                heads: 12,
                encoder_depth: 14,
                decoder_depth: 14,
                buffer_tokens: 64,
                mask_ratio_min: 0.7,
                dropout: 0.1,
                label_drop: 0.1,
            },
            head: HeadConfig { kind: HeadKind::Arinar, width: 768, depth: 1, heads: 4, gaussians: 4 },
        }
    }

    /// Returns the number of tokens along one side of an image.
    pub fn grid(&self) -> i64 {
        self.image_size / self.vae.stride
    }

    /// Returns the number of tokens per image.
    pub fn sequence_length(&self) -> i64 {
        self.grid() * self.grid()
    }

    /// Returns the number of trainable parameters of the model.
    pub fn parameter_count(&self) -> i64 {
        self.outer_parameter_count() + self.head_parameter_count()
    }

    /// Returns the number of trainable parameters of the outer layer.
    pub fn outer_parameter_count(&self) -> i64 {
        let (width, tokens) = (self.outer.width, self.sequence_length());
        let embeddings = (self.classes + 1 + 1 + 2 * (self.outer.buffer_tokens + tokens) + tokens) * width;
        let projections = self.vae.channels * width + width + width * width + width;
        let norms = 3 * 2 * width;
        let block = (4 + 2 * MLP_RATIO) * width * width + (4 + 4 + MLP_RATIO + 1) * width;
        embeddings + projections + norms + (self.outer.encoder_depth + self.outer.decoder_depth) * block
    }

    /// Returns the number of trainable parameters of the inner layer.
    pub fn head_parameter_count(&self) -> i64 {
        let (width, condition, outputs) = (self.head.width, self.outer.width, 3 * self.head.gaussians);
        let inputs = (1 + self.vae.channels + 2 + condition + 1) * width;
        let block = (4 + 2 * MLP_RATIO) * width * width + (2 + 1 + MLP_RATIO + 1) * width;
        let modulation = (self.head.depth * 6 + 2) * width * (condition + 1);
        inputs + self.head.depth * block + modulation + outputs * (width + 1)
    }

    /// Returns the number of trainable tensors of the model.
    pub fn tensor_count(&self) -> i64 {
        let outer = 16 + 12 * (self.outer.encoder_depth + self.outer.decoder_depth);
        outer + 10 + 11 * self.head.depth
    }

    /// Returns the number of scalars in the state dict that are not trained: the head's key biases, which stay zero.
    pub fn buffer_count(&self) -> i64 {
        self.head.depth * self.head.width
    }

    /// Checks every value.
    ///
    /// # Errors
    /// Returns an error for the first invalid value; it names the key and a valid value or range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_sizes()?;
        if self.image_size % self.vae.stride != 0 {
            return Err(ConfigError::ImageSize { image_size: self.image_size, stride: self.vae.stride });
        }
        divisible("outer", self.outer.width, self.outer.heads)?;
        divisible("head", self.head.width, self.head.heads)?;
        self.validate_ranges()
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("classes", self.classes, 1),
            ("vae.stride", self.vae.stride, 1),
            ("image_size", self.image_size, self.vae.stride),
            ("vae.channels", self.vae.channels, 1),
            ("outer.width", self.outer.width, 1),
            ("outer.heads", self.outer.heads, 1),
            ("outer.encoder_depth", self.outer.encoder_depth, 1),
            ("outer.decoder_depth", self.outer.decoder_depth, 1),
            ("outer.buffer_tokens", self.outer.buffer_tokens, 1),
            ("head.width", self.head.width, 1),
            ("head.heads", self.head.heads, 1),
            ("head.depth", self.head.depth, 1),
            ("head.gaussians", self.head.gaussians, 1),
        ];
        match sizes.into_iter().find(|&(_, value, least)| value < least) {
            Some((key, value, least)) => Err(ConfigError::TooSmall { key, value, least }),
            None => Ok(()),
        }
    }

    fn validate_ranges(&self) -> Result<(), ConfigError> {
        let scale = self.vae.scale;
        let probability = "at least 0 and below 1";
        let checks = [
            ("vae.scale", scale, scale > 0.0 && scale.is_finite(), "positive"),
            ("outer.mask_ratio_min", self.outer.mask_ratio_min, is_probability(self.outer.mask_ratio_min), probability),
            ("outer.dropout", self.outer.dropout, is_probability(self.outer.dropout), probability),
            ("outer.label_drop", self.outer.label_drop, is_probability(self.outer.label_drop), probability),
        ];
        match checks.into_iter().find(|&(_, _, good, _)| !good) {
            Some((key, value, _, range)) => Err(ConfigError::OutOfRange { key, value, range }),
            None => Ok(()),
        }
    }
}

fn divisible(layer: &'static str, width: i64, heads: i64) -> Result<(), ConfigError> {
    if width % heads == 0 {
        return Ok(());
    }
    let nearest = (1..=heads).rev().find(|candidate| width % candidate == 0).unwrap_or(1);
    Err(ConfigError::Heads { layer, width, heads, nearest })
}

fn is_probability(value: f64) -> bool {
    (0.0..1.0).contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arinar_b_has_the_published_sizes() {
        let config = ModelConfig::arinar_b();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.sequence_length(), 256);
        assert_eq!(config.head_parameter_count(), 12_423_180);
        assert_eq!(config.parameter_count(), 212_949_516);
    }

    #[test]
    fn errors_name_a_valid_value() {
        let mut config = ModelConfig::arinar_b();
        config.outer.heads = 10;
        let message = config.validate().unwrap_err().to_string();
        assert_eq!(message, "model.outer.width 768 is not divisible by model.outer.heads 10; use 8 heads");
        let mut config = ModelConfig::arinar_b();
        config.image_size = 250;
        let message = config.validate().unwrap_err().to_string();
        assert_eq!(message, "model.image_size 250 is not divisible by model.vae.stride 16; use 240 or 256");
        config.image_size = 8;
        assert!(config.validate().unwrap_err().to_string().contains("at least 16"));
    }

    #[test]
    fn every_invalid_value_is_rejected() {
        let corruptions: [fn(&mut ModelConfig); 8] = [
            |config| config.classes = 0,
            |config| config.vae.stride = 0,
            |config| config.vae.scale = f64::NAN,
            |config| config.outer.dropout = 1.0,
            |config| config.outer.mask_ratio_min = -0.1,
            |config| config.outer.label_drop = 2.0,
            |config| config.head.heads = 0,
            |config| config.head.gaussians = -4,
        ];
        for (index, corrupt) in corruptions.iter().enumerate() {
            let mut config = ModelConfig::arinar_b();
            corrupt(&mut config);
            assert!(config.validate().is_err(), "case {index} was accepted");
        }
    }
}
