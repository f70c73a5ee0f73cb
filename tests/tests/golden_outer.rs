//! The MAR encoder and decoder against the official ones.

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

    /// Conditions in the order of positions.
    fn decode(&self, encoded: &Tensor, mask: &Mask) -> Tensor {
        gather(&self.outer.decode(encoded, mask, false), &mask.order().argsort(1, false))
    }
}

#[test]
fn encoder_and_decoder_give_the_official_conditions() {
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
fn everything_may_be_masked() {
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
fn a_single_block_is_timms() {
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
fn patches_are_the_official_ones() {
    let golden = Golden::read("outer_mar");
    assert_eq!(patchify(&golden.tensor("in.patchify_latent")), golden.tensor("out.patchify_p1"));
}

#[test]
fn dropout_acts_in_training_only() {
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
    assert_eq!(store.len(), case.store.len());
}
