//! Compares the MAR encoder and decoder with the official ones.

use arinar_model::arinar::patchify;
use arinar_model::mask::{Mask, gather};
use arinar_model::outer::{Block, Mar};
use arinar_tests::golden::Golden;
use tch::{Device, Kind, Tensor, nn};

struct Case {
    golden: Golden,
    store: nn::VarStore,
    outer: Mar,
}

fn case() -> Case {
    let golden = Golden::read("outer_mar");
    let config = golden.model_config();
    let store = nn::VarStore::new(Device::Cpu);
    let outer = Mar::new(&store.root(), config.sequence_length(), config.classes, &config.vae, &config.outer);
    golden.fill(&store);
    Case { golden, store, outer }
}

impl Case {
    fn class_embedding(&self, drop: bool) -> Tensor {
        let labels = self.golden.tensor("in.labels");
        self.outer.class_embedding(&labels, &Tensor::full_like(&labels, i64::from(drop)).to_kind(Kind::Bool))
    }

    /// Returns the conditions in the order of positions.
    fn decode(&self, encoded: &Tensor, mask: &Mask) -> Tensor {
        gather(&self.outer.decode(encoded, mask, false), &mask.order().argsort(1, false))
    }
}

#[test]
fn encoder_and_decoder_match_the_official_conditions() {
    let case = case();
    let tokens = case.golden.tensor("in.tokens");
    let mask = Mask::from_dense(&case.golden.tensor("in.mask"));
    let mut comparison = case.golden.comparison();
    comparison.check("out.class_embedding", &case.class_embedding(false));
    for (suffix, drop) in [("", false), ("_uncond", true)] {
        let encoded = case.outer.encode(&tokens, &case.class_embedding(drop), &mask, false);
        comparison.check(&format!("out.enc{suffix}"), &encoded);
        comparison.check(&format!("out.z{suffix}"), &case.decode(&encoded, &mask));
    }
    comparison.finish();
}

#[test]
fn all_tokens_may_be_masked() {
    let case = case();
    let tokens = case.golden.tensor("in.tokens").zeros_like();
    let mask = Mask::from_dense(&case.golden.tensor("in.mask").ones_like());
    let encoded = case.outer.encode(&tokens, &case.class_embedding(false), &mask, false);
    let mut comparison = case.golden.comparison();
    comparison.check("out.enc_allmasked", &encoded);
    comparison.check("out.z_allmasked", &case.decode(&encoded, &mask));
    comparison.finish();
}

#[test]
fn the_order_of_tokens_does_not_matter() {
    let case = case();
    let tokens = case.golden.tensor("in.tokens");
    let mask = Mask::from_orders(&case.golden.tensor("in.orders"), case.golden.size("num_masked"));
    let encoded = case.outer.encode(&tokens, &case.class_embedding(false), &mask, false);
    let mut comparison = case.golden.comparison();
    comparison.check("out.z", &case.decode(&encoded, &mask));
    comparison.finish();
}

#[test]
fn masked_tokens_are_not_read() {
    let case = case();
    let dense = case.golden.tensor("in.mask");
    let mask = Mask::from_dense(&dense);
    let tokens = case.golden.tensor("in.tokens");
    let spoiled = tokens.where_self(&dense.eq(0).unsqueeze(-1), &Tensor::from(f32::NAN));
    let encode = |tokens| case.outer.encode(tokens, &case.class_embedding(false), &mask, false);
    assert_eq!(encode(&spoiled), encode(&tokens));
}

#[test]
fn a_single_block_matches_timm() {
    let case = case();
    let config = case.golden.model_config();
    let store = nn::VarStore::new(Device::Cpu);
    let block = Block::new(&store.root(), config.outer.width, config.outer.heads, 0.0);
    tch::no_grad(|| {
        for (name, variable) in store.variables() {
            variable.shallow_clone().copy_(&case.golden.tensor(&format!("encoder_blocks.0.{name}")));
        }
    });
    let mut comparison = case.golden.comparison();
    comparison.check("out.enc_block0", &block.forward(&case.golden.tensor("out.enc"), false));
    comparison.finish();
}

#[test]
fn patches_match_the_official_ones() {
    let golden = Golden::read("outer_mar");
    assert_eq!(patchify(&golden.tensor("in.patchify_latent")), golden.tensor("out.patchify_p1"));
}

#[test]
fn dropout_applies_in_encoder_and_decoder_in_training_only() {
    let case = case();
    let mut config = case.golden.model_config();
    config.outer.dropout = 0.1;
    let store = nn::VarStore::new(Device::Cpu);
    let outer = Mar::new(&store.root(), config.sequence_length(), config.classes, &config.vae, &config.outer);
    case.golden.fill(&store);
    let tokens = case.golden.tensor("in.tokens");
    let mask = Mask::from_dense(&case.golden.tensor("in.mask"));
    let encode = |train| outer.encode(&tokens, &case.class_embedding(false), &mask, train);
    let mut comparison = case.golden.comparison();
    comparison.check("out.enc", &encode(false));
    comparison.finish();
    assert_ne!(encode(true), encode(true));
    let encoded = encode(false);
    let decode = |train| outer.decode(&encoded, &mask, train);
    assert_eq!(decode(false), decode(false));
    assert_ne!(decode(true), decode(true));
    assert_eq!(store.len(), case.store.len());
}

/// Width, attention heads and dropout of the blocks below.
const WIDTH: i64 = 16;
const HEADS: i64 = 2;
const HALF: f64 = 0.5;

/// Returns the output of a block with dropout 1/2 minus its input, [B, N, D]. Its weights are zero except those given,
/// and both layer norms output ones.
fn branch(batch: i64, length: i64, train: bool, given: &[(&str, Tensor)]) -> Tensor {
    tch::manual_seed(3);
    let store = nn::VarStore::new(Device::Cpu);
    let block = Block::new(&store.root(), WIDTH, HEADS, HALF);
    let ones = Tensor::ones([WIDTH], (Kind::Float, Device::Cpu));
    tch::no_grad(|| {
        for (name, variable) in store.variables() {
            let mut variable = variable.shallow_clone();
            match given.iter().find(|(wanted, _)| *wanted == name) {
                Some((_, value)) => variable.copy_(value),
                None if name == "norm1.bias" || name == "norm2.bias" => variable.copy_(&ones),
                None => {
                    let _ = variable.zero_();
                }
            }
        }
        block.forward(&Tensor::zeros([batch, length, WIDTH], (Kind::Float, Device::Cpu)), train)
    })
}

fn identity() -> Tensor {
    Tensor::eye(WIDTH, (Kind::Float, Device::Cpu))
}

/// Asserts that the share of elements equal to `value` is as expected, within six standard deviations.
#[track_caller]
fn assert_share(elements: &Tensor, value: f64, expected: f64) {
    let share = (elements - value).abs().lt(1e-3).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    let limit = 6.0 * (expected * (1.0 - expected) / elements.numel() as f64).sqrt();
    assert!((share - expected).abs() <= limit, "{share} of the elements are {value}, not {expected}");
}

#[test]
fn attention_weights_and_the_projection_are_dropped_independently() {
    // A single token attends to itself with weight one, so with these weights the branch is one everywhere.
    let value = Tensor::cat(&[Tensor::zeros([2 * WIDTH, WIDTH], (Kind::Float, Device::Cpu)), identity()], 0);
    let given = [("attn.qkv.weight", value), ("attn.proj.weight", identity())];
    assert_eq!(branch(2, 1, false, &given), Tensor::ones([2, 1, WIDTH], (Kind::Float, Device::Cpu)));
    let heads = branch(20_000, 1, true, &given).view([-1, WIDTH / HEADS]);
    // Each dropout doubles the elements that it keeps. The elements of a head share one attention weight.
    assert_share(&heads, 4.0, 0.25);
    assert_share(&heads, 0.0, 0.75);
    let whole_head = 0.5 + 0.5 * HALF.powi((WIDTH / HEADS) as i32);
    let limit = 6.0 * 0.5 / (heads.size()[0] as f64).sqrt();
    let empty = heads.eq(0.0).all_dim(1, false).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    // Heads are independent, but the elements of one head are not, so there are fewer draws than elements.
    assert!((empty - whole_head).abs() < limit, "{empty} of the heads are dropped");
}

#[test]
fn hidden_units_and_the_output_of_the_mlp_are_dropped_independently() {
    // Every output is the mean of two hidden units of GELU(3).
    let hidden = Tensor::full([4 * WIDTH], 3.0, (Kind::Float, Device::Cpu));
    let none = Tensor::zeros([WIDTH, 2 * WIDTH], (Kind::Float, Device::Cpu));
    let half = identity() * 0.5 / Tensor::from(3.0_f32).gelu("none");
    let given = [("mlp.fc1.bias", hidden), ("mlp.fc2.weight", Tensor::cat(&[half.shallow_clone(), half, none], 1))];
    let undropped = branch(2, 3, false, &given);
    assert!((undropped - 1.0).abs().max().double_value(&[]) < 1e-6);
    let outputs = branch(2000, 3, true, &given);
    // Zero, one or two hidden units are kept and doubled; then the output is kept and doubled, or dropped.
    assert_share(&outputs, 4.0, 0.125);
    assert_share(&outputs, 2.0, 0.25);
    assert_share(&outputs, 0.0, 0.625);
}
