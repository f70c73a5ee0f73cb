//! The ARINAR head: a small causal transformer over the features of one token (section 3.2 of the paper, official
//! `arhead.py`).
//!
//! Shapes: N tokens, F features, D width of the condition z, W width of the head, K Gaussians.

use tch::nn;
use tch::{Kind, Tensor};

use super::block::{Block, Cache, MODULATION_DAMPING, Modulation, modulate};
use crate::config::HeadConfig;
use crate::gmm::Mixture;
use crate::guidance::FeatureSource;
use crate::init::{embedding, normal_linear};
use crate::linear::Linear;

/// Initial damping of the output layer, so that all mixtures start close to the standard normal.
const OUTPUT_DAMPING: f64 = 0.02;

/// The ARINAR head, which predicts a mixture for each feature from the condition and the preceding features.
#[derive(Debug)]
pub struct ArinarHead {
    start_token: Tensor,
    pos_embedding: Tensor,
    input_proj: Linear,
    cond_proj: Linear,
    blocks: Vec<Block>,
    output_ada_lin: Linear,
    output: Linear,
    features: i64,
    width: i64,
}

/// The values computed from the condition once per token.
struct Condition {
    /// `cond_proj(z) + start_token`, [N, 1, W].
    start: Tensor,
    blocks: Vec<Modulation>,
    output_scale: Tensor,
    output_shift: Tensor,
}

impl ArinarHead {
    /// Creates the parameters at `path` for conditions of width `condition` and tokens of `features` features.
    pub fn new(path: &nn::Path<'_>, condition: i64, features: i64, config: &HeadConfig) -> Self {
        let (width, depth) = (config.width, config.depth);
        let block = |index| Block::new(&(path / "blocks" / index), width, condition, config.heads, depth);
        Self {
            start_token: embedding(path, "start_token", &[1, 1, width]),
            pos_embedding: embedding(path, "pos_embedding", &[1, features, width]),
            input_proj: normal_linear(path / "input_proj", 1, width, 1.0),
            cond_proj: normal_linear(path / "cond_proj", condition, width, 1.0),
            blocks: (0..depth).map(block).collect(),
            output_ada_lin: normal_linear(path / "head_nm" / "ada_lin" / 1, condition, 2 * width, MODULATION_DAMPING),
            output: normal_linear(path / "head", width, 3 * config.gaussians, OUTPUT_DAMPING),
            features,
            width,
        }
    }

    /// Computes the negative log-likelihood of each token, summed over its features, without the constant
    /// F log(2 pi) / 2.
    ///
    /// # Shapes
    /// `z` [N, D], `tokens` [N, F]; returns `[N]`.
    pub fn negative_log_likelihood(&self, z: &Tensor, tokens: &Tensor) -> Tensor {
        let mixture = Mixture::from_raw(&self.forward(z, tokens));
        mixture.log_likelihood(tokens).sum_dim_intlist(-1, false, None::<Kind>).neg()
    }

    /// Computes the raw output for each feature, given the true preceding features (teacher forcing).
    ///
    /// # Shapes
    /// `z` [N, D], `tokens` [N, F]; returns [N, F, 3K].
    pub fn forward(&self, z: &Tensor, tokens: &Tensor) -> Tensor {
        let condition = self.condition(z);
        let known = tokens.narrow(1, 0, self.features - 1).unsqueeze(-1);
        let inputs = Tensor::cat(&[&condition.start, &self.input_proj.forward(&known)], 1) + &self.pos_embedding;
        let hidden = self
            .blocks
            .iter()
            .zip(&condition.blocks)
            .fold(inputs, |hidden, (block, modulation)| block.forward(&hidden, modulation));
        self.raw_output(&hidden, &condition)
    }

    /// Decodes tokens feature by feature with cached keys and values; `source` chooses each feature.
    ///
    /// # Shapes
    /// `z` [N, D]; if `guided`, [2N, D] with the conditions of the null class in the second half. Returns [N, F].
    pub fn decode(&self, z: &Tensor, guided: bool, source: &mut dyn FeatureSource) -> Tensor {
        let rows = z.size()[0];
        let condition = self.condition(z);
        let mut caches: Vec<Cache> =
            self.blocks.iter().map(|block| Cache::new(block, rows, self.features, z)).collect();
        let mut chosen: Vec<Tensor> = Vec::new();
        let mut input = condition.start.shallow_clone();
        for feature in 0..self.features {
            let mut hidden = input + self.pos_embedding.narrow(1, feature, 1);
            for ((block, modulation), cache) in self.blocks.iter().zip(&condition.blocks).zip(&mut caches) {
                hidden = block.extend(&hidden, modulation, cache);
            }
            let mixture = Mixture::from_raw(&self.raw_output(&hidden, &condition).squeeze_dim(1));
            let value = choose(&mixture, guided, feature, source);
            input = self.next_input(&value, guided);
            chosen.push(value);
        }
        Tensor::stack(&chosen, 1)
    }

    /// Returns the layers that follow the model's precision: all except `input_proj` and `head`, which would round the
    /// features and the mixtures.
    pub(crate) fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        let outside = [&mut self.cond_proj, &mut self.output_ada_lin];
        outside.into_iter().chain(self.blocks.iter_mut().flat_map(Block::linears))
    }

    fn condition(&self, z: &Tensor) -> Condition {
        let activated = z.silu();
        let output = self.output_ada_lin.forward(&activated).to_kind(z.kind()).view([-1, 2, 1, self.width]);
        Condition {
            start: self.cond_proj.forward(z).unsqueeze(1) + &self.start_token,
            blocks: self.blocks.iter().map(|block| block.modulation(&activated)).collect(),
            output_scale: output.select(1, 0) + 1.0,
            output_shift: output.select(1, 1),
        }
    }

    fn raw_output(&self, hidden: &Tensor, condition: &Condition) -> Tensor {
        let normed = modulate(hidden, &condition.output_scale, &condition.output_shift, self.width);
        self.output.forward(&normed)
    }

    /// Projects chosen values, `[N]` to [N, 1, W]. If `guided`, returns [2N, 1, W]: both halves continue with the same
    /// value.
    fn next_input(&self, value: &Tensor, guided: bool) -> Tensor {
        let projected = self.input_proj.forward(&value.view([-1, 1, 1]));
        if guided { projected.repeat([2, 1, 1]) } else { projected }
    }
}

fn choose(mixture: &Mixture, guided: bool, feature: i64, source: &mut dyn FeatureSource) -> Tensor {
    if !guided {
        return source.choose(feature, mixture, None);
    }
    let tokens = mixture.mean.size()[0] / 2;
    source.choose(feature, &mixture.narrow(0, tokens), Some(&mixture.narrow(tokens, tokens)))
}
