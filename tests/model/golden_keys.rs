//! Compares names, shapes and counts of parameters, and their initialisation, with the official code.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use arinar_model::config::{HeadConfig, HeadKind, ModelConfig, OuterConfig};
use arinar_model::head::ArinarHead;
use arinar_model::outer::Mar;
use arinar_model::{Arinar, weights};
use arinar_tests::golden::{Golden, shapes};
use serde_json::Value;
use tch::{Device, Kind, Tensor, nn};

fn whole_model(config: &ModelConfig) -> nn::VarStore {
    let store = nn::VarStore::new(Device::Cpu);
    Arinar::new(&store.root(), config);
    store
}

#[test]
fn whole_models_have_the_official_keys() {
    for name in ["arinar_train", "full_sample"] {
        let golden = Golden::read(name);
        let store = whole_model(&golden.model_config());
        assert_eq!(shapes(&weights::named(&store)), golden.parameter_shapes(), "{name}");
    }
}

#[test]
fn each_layer_has_the_official_keys() {
    let golden = Golden::read("outer_mar");
    let config = golden.model_config();
    let store = nn::VarStore::new(Device::Cpu);
    Mar::new(&store.root(), config.sequence_length(), config.classes, &config.vae, &config.outer);
    assert_eq!(shapes(&weights::named(&store)), golden.parameter_shapes());

    let golden = Golden::read("inner_head");
    let config = HeadConfig {
        kind: HeadKind::Arinar,
        width: golden.size("width"),
        depth: golden.size("depth"),
        heads: golden.size("num_heads"),
        gaussians: golden.size("num_gaussians"),
    };
    let store = nn::VarStore::new(Device::Cpu);
    ArinarHead::new(&store.root(), golden.size("decoder_embed_dim"), golden.size("token_embed_dim"), &config);
    assert_eq!(shapes(&weights::named(&store)), golden.parameter_shapes());
}

#[test]
fn the_trainable_parameters_match_the_official_ones() {
    let golden = Golden::read("arinar_train");
    let config = golden.model_config();
    let store = whole_model(&config);
    let trainable = weights::trainable(&store);
    let ours: BTreeSet<String> = trainable.iter().map(|(name, _)| name.clone()).collect();
    let official: BTreeSet<String> = golden.names("/values/param_order").into_iter().collect();
    assert_eq!(ours, official);
    let count: usize = trainable.iter().map(|(_, tensor)| tensor.numel()).sum();
    assert_eq!(count as i64, config.parameter_count());
    for (group, expected) in [("decay", true), ("no_decay", false)] {
        let official: BTreeSet<String> = golden.names(&format!("/param_groups/{group}")).into_iter().collect();
        let ours = trainable.iter().filter(|(name, tensor)| weights::decays(name, &tensor.size()) == expected);
        assert_eq!(ours.map(|(name, _)| name.clone()).collect::<BTreeSet<_>>(), official, "{group}");
    }
}

/// Returns the published sizes of the model whose title starts with `title`.
fn production_counts(golden: &Golden, title: &str) -> Value {
    let counts = golden.value("/production_param_counts").as_object().unwrap();
    let found = counts.iter().find(|(name, _)| name.starts_with(title));
    found.unwrap_or_else(|| panic!("golden manifest has no counts of {title}")).1.clone()
}

#[test]
fn arinar_b_has_the_published_number_of_parameters() {
    let expected = production_counts(&Golden::read("arinar_train"), "ARINAR-B");
    let config = ModelConfig::arinar_b();
    let store = whole_model(&config);
    let count = |parameters: &[(String, Tensor)]| parameters.iter().map(|(_, tensor)| tensor.numel()).sum::<usize>();
    let trainable = weights::trainable(&store);
    assert_eq!(count(&trainable) as i64, expected["total"].as_i64().unwrap());
    assert_eq!(config.parameter_count(), expected["total"].as_i64().unwrap());
    let (head, outer): (Vec<_>, Vec<_>) =
        trainable.into_iter().partition(|(name, _)| name.starts_with(weights::HEAD_PREFIX));
    assert_eq!(count(&head) as i64, expected["inner"].as_i64().unwrap());
    assert_eq!(count(&outer) as i64, expected["outer"].as_i64().unwrap());
}

#[test]
fn larger_models_have_the_published_number_of_parameters() {
    let golden = Golden::read("arinar_train");
    for (title, width, heads, depth) in [("ARINAR-L", 1024, 16, 16), ("ARINAR-H", 1280, 16, 20)] {
        let preset = ModelConfig::arinar_b();
        let outer = OuterConfig { width, heads, encoder_depth: depth, decoder_depth: depth, ..preset.outer };
        let config = ModelConfig { outer, ..preset };
        config.validate().unwrap();
        let expected = production_counts(&golden, title);
        assert_eq!(config.parameter_count(), expected["total"].as_i64().unwrap(), "{title}");
        assert_eq!(config.head_parameter_count(), expected["inner"].as_i64().unwrap(), "{title}");
    }
}

/// Returns the standard deviation of a tensor in the official initialisation; zero and one mean constants.
fn official_deviation(name: &str, shape: &[i64], config: &ModelConfig) -> f64 {
    let damped_by_depth = 0.02 / (2.0 * config.head.depth as f64).sqrt();
    match name.strip_prefix(weights::HEAD_PREFIX) {
        _ if name.ends_with("bias") => 0.0,
        Some("head.weight") => 0.02 * 0.02,
        Some("head_nm.ada_lin.1.weight") => 0.02 * 0.5,
        Some(name) if name.ends_with("attn.proj.weight") || name.ends_with("ffn.fc2.weight") => damped_by_depth,
        Some(_) => 0.02,
        None if name == "class_emb.weight" || !name.ends_with("weight") => 0.02,
        None if shape.len() == 2 => (2.0 / (shape[0] + shape[1]) as f64).sqrt(),
        None => 1.0,
    }
}

#[test]
fn the_initialisation_matches_the_official_one() {
    let config = ModelConfig {
        image_size: 64,
        outer: OuterConfig { width: 96, heads: 4, encoder_depth: 2, decoder_depth: 1, ..ModelConfig::arinar_b().outer },
        head: HeadConfig { width: 128, depth: 2, ..ModelConfig::arinar_b().head },
        ..ModelConfig::arinar_b()
    };
    let variables = weights::named(&whole_model(&config));
    for (name, variable) in &variables {
        let shape = variable.size();
        if name.starts_with("arhead.blocks.") && name.ends_with("ada_lin.1.weight") {
            let gammas = 2 * config.head.width;
            check_deviation(name, &variable.narrow(0, 0, gammas), 0.02 * 1e-5);
            check_deviation(name, &variable.narrow(0, gammas, shape[0] - gammas), 0.02 * 0.5);
        } else if shape.len() == 1 && !name.ends_with("bias") {
            assert!(variable.eq(1.0).all() == Tensor::from(true), "{name}");
        } else {
            check_deviation(name, variable, official_deviation(name, &shape, &config));
        }
    }
}

fn check_deviation(name: &str, values: &Tensor, expected: f64) {
    let rms = values.to_kind(Kind::Double).square().mean(Kind::Double).sqrt().double_value(&[]);
    // Five standard errors of a deviation estimated from this many values.
    let error = 5.0 * expected / (2.0 * values.numel() as f64).sqrt();
    assert!((rms - expected).abs() <= error, "{name}: {rms} instead of {expected}");
}
