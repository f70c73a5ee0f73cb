//! Compares the loss, the gradients and cached decoding of the ARINAR head with the official one, and cached decoding
//! with teacher forcing.

use arinar_model::config::{HeadConfig, HeadKind};
use arinar_model::gmm::Mixture;
use arinar_model::guidance::{FeatureSource, Step};
use arinar_model::head::ArinarHead;
use arinar_model::weights;
use arinar_tests::golden::{Golden, max_error};
use tch::{Device, Kind, Tensor, nn};

/// Replays fixed features, [N, F], and stores the mixtures that it receives.
struct Replay {
    features: Tensor,
    seen: Vec<Mixture>,
}

impl FeatureSource for Replay {
    fn begin_step(&mut self, _step: &Step<'_>) {}

    fn choose(&mut self, feature: i64, conditional: &Mixture, null: Option<&Mixture>) -> Tensor {
        let both = |part: fn(&Mixture) -> &Tensor| match null {
            Some(null) => Tensor::cat(&[part(conditional), part(null)], 0),
            None => part(conditional).shallow_clone(),
        };
        let seen =
            Mixture { log_weight: both(|m| &m.log_weight), mean: both(|m| &m.mean), logvar: both(|m| &m.logvar) };
        self.seen.push(seen);
        self.features.select(1, feature)
    }
}

impl Replay {
    fn stacked(&self, part: fn(&Mixture) -> &Tensor) -> Tensor {
        Tensor::stack(&self.seen.iter().map(part).collect::<Vec<_>>(), 1)
    }
}

struct Case {
    golden: Golden,
    store: nn::VarStore,
    head: ArinarHead,
}

fn case() -> Case {
    let golden = Golden::read("inner_head");
    let config = HeadConfig {
        kind: HeadKind::Arinar,
        width: golden.size("width"),
        depth: golden.size("depth"),
        heads: golden.size("num_heads"),
        gaussians: golden.size("num_gaussians"),
    };
    let store = nn::VarStore::new(Device::Cpu);
    let head =
        ArinarHead::new(&store.root(), golden.size("decoder_embed_dim"), golden.size("token_embed_dim"), &config);
    golden.fill(&store);
    Case { golden, store, head }
}

#[test]
fn teacher_forcing_matches_the_official_mixtures() {
    let Case { golden, head, .. } = case();
    let (z, target) = (golden.tensor("in.z"), golden.tensor("in.target"));
    let raw = head.forward(&z, &target);
    let mixture = Mixture::from_raw(&raw);
    let mut comparison = golden.comparison();
    comparison.check("out.raw", &raw);
    comparison.check("out.weight", &mixture.log_weight.exp());
    comparison.check("out.mu", &mixture.mean);
    comparison.check("out.logvar", &mixture.logvar);
    comparison.check("out.per_feature_ll", &mixture.log_likelihood(&target));
    comparison.check("out.per_token_nll", &head.negative_log_likelihood(&z, &target));
    comparison.finish();
}

#[test]
fn loss_and_gradients_match_the_official_ones() {
    let Case { golden, store, head } = case();
    let z = golden.tensor("in.z").set_requires_grad(true);
    // The official code evaluates every token and weights by the mask; evaluating only masked tokens is equivalent.
    let masked = golden.tensor("in.mask").nonzero().squeeze_dim(1);
    let target = golden.tensor("in.target").index_select(0, &masked);
    let loss = head.negative_log_likelihood(&z.index_select(0, &masked), &target).mean(None::<Kind>);
    loss.backward();
    let mut comparison = golden.comparison();
    comparison.check("out.nll", &loss);
    comparison.check("out.dz", &z.grad());
    for (name, parameter) in weights::trainable(&store) {
        comparison.check(&format!("grad.{name}"), &parameter.grad());
    }
    comparison.finish();
}

#[test]
fn cached_decoding_matches_the_official_mixtures() {
    let Case { golden, head, .. } = case();
    let mut comparison = golden.comparison();
    for (prefix, z, features, guided) in
        [("step", "in.z", "in.features", false), ("cfg_step", "in.cfg_z", "in.cfg_features", true)]
    {
        let mut replay = Replay { features: golden.tensor(features), seen: Vec::new() };
        let decoded = head.decode(&golden.tensor(z), guided, &mut replay);
        assert_eq!(decoded, golden.tensor(features));
        comparison.check(&format!("out.{prefix}_weight"), &replay.stacked(|m| &m.log_weight).exp());
        comparison.check(&format!("out.{prefix}_mu"), &replay.stacked(|m| &m.mean));
        comparison.check(&format!("out.{prefix}_logvar"), &replay.stacked(|m| &m.logvar));
    }
    comparison.finish();
}

#[test]
fn cached_decoding_equals_teacher_forcing() {
    let Case { golden, head, .. } = case();
    let (z, features) = (golden.tensor("in.z"), golden.tensor("in.features"));
    let forced = Mixture::from_raw(&head.forward(&z, &features));
    let mut replay = Replay { features, seen: Vec::new() };
    assert_eq!(head.decode(&z, false, &mut replay), replay.features);
    let scale = forced.mean.abs().max().double_value(&[]);
    assert!(max_error(&replay.stacked(|m| &m.mean), &forced.mean) < 1e-5 * scale);
    assert!(max_error(&replay.stacked(|m| &m.logvar), &forced.logvar) < 1e-5 * scale);
    assert!(max_error(&replay.stacked(|m| &m.log_weight), &forced.log_weight) < 1e-5 * scale);
}
