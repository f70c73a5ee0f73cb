//! The masked autoregressive encoder and decoder (official `mar.py`).
//!
//! Shapes: B samples, L tokens of C features, S buffer tokens, K kept and M masked tokens (K + M = L), D width.

use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};

use super::block::Block;
use crate::config::{LatentConfig, OuterConfig};
use crate::init::{embedding, layer_norm, xavier_linear};
use crate::linear::Linear;
use crate::mask::{self, Mask};

/// The masked autoregressive transformer, which maps the kept tokens and a class to a condition vector for every token.
#[derive(Debug)]
pub struct Mar {
    class_emb: Tensor,
    fake_latent: Tensor,
    z_proj: Linear,
    z_proj_ln: nn::LayerNorm,
    encoder_pos_embed: Tensor,
    encoder_blocks: Vec<Block>,
    encoder_norm: nn::LayerNorm,
    decoder_embed: Linear,
    mask_token: Tensor,
    decoder_pos_embed: Tensor,
    decoder_blocks: Vec<Block>,
    decoder_norm: nn::LayerNorm,
    diffusion_pos_embed: Tensor,
    buffer_tokens: i64,
}

impl Mar {
    /// Creates the parameters at `path` for sequences of `tokens` tokens.
    pub fn new(path: &nn::Path<'_>, tokens: i64, classes: i64, latent: &LatentConfig, config: &OuterConfig) -> Self {
        let width = config.width;
        let positions = config.buffer_tokens + tokens;
        Self {
            class_emb: embedding(&(path / "class_emb"), "weight", &[classes, width]),
            fake_latent: embedding(path, "fake_latent", &[1, width]),
            z_proj: xavier_linear(path / "z_proj", latent.channels, width),
            z_proj_ln: layer_norm(path / "z_proj_ln", width),
            encoder_pos_embed: embedding(path, "encoder_pos_embed_learned", &[1, positions, width]),
            encoder_blocks: blocks(&(path / "encoder_blocks"), config.encoder_depth, config),
            encoder_norm: layer_norm(path / "encoder_norm", width),
            decoder_embed: xavier_linear(path / "decoder_embed", width, width),
            mask_token: embedding(path, "mask_token", &[1, 1, width]),
            decoder_pos_embed: embedding(path, "decoder_pos_embed_learned", &[1, positions, width]),
            decoder_blocks: blocks(&(path / "decoder_blocks"), config.decoder_depth, config),
            decoder_norm: layer_norm(path / "decoder_norm", width),
            diffusion_pos_embed: embedding(path, "diffusion_pos_embed_learned", &[1, tokens, width]),
            buffer_tokens: config.buffer_tokens,
        }
    }

    /// Returns the device of the parameters.
    pub(crate) fn device(&self) -> Device {
        self.fake_latent.device()
    }

    /// Returns the embedding of each label, or that of the null class where `drop` is true.
    ///
    /// # Shapes
    /// `labels` `[B]` i64, `drop` `[B]` bool; returns [B, D].
    pub fn class_embedding(&self, labels: &Tensor, drop: &Tensor) -> Tensor {
        // A dropped label may be any placeholder, so it must not be looked up.
        let known = labels.where_self(&drop.logical_not(), &labels.zeros_like());
        self.fake_latent.where_self(&drop.unsqueeze(-1), &lookup(&self.class_emb, &known))
    }

    /// Returns the embedding of the null class, [batch, D].
    pub fn null_embedding(&self, batch: i64) -> Tensor {
        self.fake_latent.expand([batch, -1], false)
    }

    /// Encodes the kept tokens, preceded by the buffer tokens, which all hold the class embedding.
    ///
    /// # Shapes
    /// `tokens` [B, L, C] (masked tokens are ignored), `class_embedding` [B, D]; returns [B, S + K, D].
    pub fn encode(&self, tokens: &Tensor, class_embedding: &Tensor, mask: &Mask, train: bool) -> Tensor {
        let kept = self.z_proj.forward(&mask::gather(tokens, mask.kept())); // [B, K, D]
        let buffer = class_embedding.unsqueeze(1).expand([-1, self.buffer_tokens, -1], false);
        let rows = self.position_rows(mask.kept());
        let inputs = Tensor::cat(&[buffer, kept], 1) + lookup(&self.encoder_pos_embed.squeeze_dim(0), &rows);
        let inputs = self.z_proj_ln.forward(&inputs);
        self.encoder_norm.forward(&run(&self.encoder_blocks, inputs, train))
    }

    /// Decodes a condition vector for every token.
    ///
    /// # Shapes
    /// `encoded` [B, S + K, D]; returns [B, L, D] in the order of [`Mask::order`]: kept tokens first.
    pub fn decode(&self, encoded: &Tensor, mask: &Mask, train: bool) -> Tensor {
        let (batch, length) = (encoded.size()[0], mask.num_kept() + mask.num_masked());
        let order = mask.order();
        let unknown = self.mask_token.expand([batch, mask.num_masked(), -1], false);
        let tokens = Tensor::cat(&[self.decoder_embed.forward(encoded), unknown], 1); // [B, S + L, D]
        let tokens = tokens + lookup(&self.decoder_pos_embed.squeeze_dim(0), &self.position_rows(&order));
        let tokens = run(&self.decoder_blocks, tokens, train).narrow(1, self.buffer_tokens, length);
        self.decoder_norm.forward(&tokens) + lookup(&self.diffusion_pos_embed.squeeze_dim(0), &order)
    }

    /// Returns the layers that follow the model's precision: all except `z_proj`, which would round the input tokens.
    pub(crate) fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        let blocks = self.encoder_blocks.iter_mut().chain(&mut self.decoder_blocks);
        std::iter::once(&mut self.decoder_embed).chain(blocks.flat_map(Block::linears))
    }

    /// Returns the rows of the position tables for the buffer followed by `positions`: [B, N] to [B, S + N].
    fn position_rows(&self, positions: &Tensor) -> Tensor {
        let buffer = Tensor::arange(self.buffer_tokens, (Kind::Int64, positions.device()));
        Tensor::cat(&[buffer.expand([positions.size()[0], -1], false), positions + self.buffer_tokens], 1)
    }
}

fn blocks(path: &nn::Path<'_>, depth: i64, config: &OuterConfig) -> Vec<Block> {
    (0..depth).map(|index| Block::new(&(path / index), config.width, config.heads, config.dropout)).collect()
}

fn run(blocks: &[Block], tokens: Tensor, train: bool) -> Tensor {
    blocks.iter().fold(tokens, |tokens, block| block.forward(&tokens, train))
}

/// Looks up rows of a table [P, D]; `indices` is [B, N] or `[B]`.
fn lookup(table: &Tensor, indices: &Tensor) -> Tensor {
    Tensor::embedding(table, indices, -1, false, false)
}
