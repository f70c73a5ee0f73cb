use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::config::{HeadConfig, HeadKind, LatentConfig, OuterConfig, OuterKind};
use crate::gmm::Mixture;
use crate::guidance::{FeatureSource, Step};
use crate::sampling::SampleOptions;
use crate::schedule::GuidanceSchedule;
use crate::weights;

/// Relative error of rounding to bfloat16, which keeps 8 binary digits: at most this for a large significand, at most
/// twice this for a small one.
const ROUNDING: f64 = 1.0 / 256.0 / 2.0;

fn config() -> ModelConfig {
    ModelConfig {
        image_size: 16,
        classes: 3,
        vae: LatentConfig { stride: 4, channels: 4, scale: 1.0 },
        outer: OuterConfig {
            kind: OuterKind::Mar,
            width: 64,
            heads: 4,
            encoder_depth: 2,
            decoder_depth: 2,
            buffer_tokens: 4,
            mask_ratio_min: 0.7,
            dropout: 0.0,
            label_drop: 0.1,
        },
        head: HeadConfig { kind: HeadKind::Arinar, width: 64, depth: 2, heads: 2, gaussians: 3 },
    }
}

/// Returns numbers in [-1, 1] that do not depend on libtorch's generator, which all tests of the process share.
fn noise(shape: &[i64], salt: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    let large = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + salt).sin() * 43758.5453;
    ((&large - large.floor()) * 2.0 - 1.0).to_kind(Kind::Float).view(shape)
}

/// Creates a model whose parameters all have a typical magnitude. Initially some are so small that their branches have
/// no effect.
fn model() -> (nn::VarStore, Arinar) {
    let store = nn::VarStore::new(Device::Cpu);
    let model = Arinar::new(&store.root(), &config());
    tch::no_grad(|| {
        for (index, (_, mut parameter)) in weights::trainable(&store).into_iter().enumerate() {
            let centre = if parameter.dim() == 1 { parameter.mean(Kind::Float).round() } else { Tensor::from(0.0) };
            parameter.copy_(&(noise(&parameter.size(), index as f64) * 0.1 + centre));
        }
    });
    (store, model)
}

fn loss(model: &Arinar) -> Tensor {
    let latents = noise(&[8, 4, 4, 4], 0.3) * 1.7;
    let orders = noise(&[8, 16], 0.6).argsort(1, false);
    let labels = Tensor::from_slice(&[0_i64, 1, 2, 0, 1, 2, 0, 1]);
    let drop_label = Tensor::from_slice(&[false, false, true, false, false, false, false, true]);
    model.loss(&latents, &labels, &drop_label, &Mask::from_orders(&orders, 12), false)
}

fn gradients(store: &nn::VarStore, loss: &Tensor) -> BTreeMap<String, Tensor> {
    let take = |(name, parameter): (String, Tensor)| {
        let gradient = parameter.grad().copy();
        let _ = parameter.grad().zero_();
        (name, gradient)
    };
    loss.backward();
    weights::trainable(store).into_iter().map(take).collect()
}

fn norm(tensor: &Tensor) -> f64 {
    tensor.to_kind(Kind::Double).norm().double_value(&[])
}

#[test]
fn losses_and_gradients_in_bf16_are_float32_and_close_to_those_of_fp32() {
    let (store, mut model) = model();
    let single = loss(&model);
    let exact = gradients(&store, &single);
    model.set_precision(Precision::Bf16);
    let half = loss(&model);
    let rounded = gradients(&store, &half);
    assert_eq!((half.kind(), half.size()), (Kind::Float, vec![]));
    let (single, half) = (single.double_value(&[]), half.double_value(&[]));
    assert_ne!(single, half);
    assert!((half - single).abs() < 2.0 * ROUNDING * single.abs(), "{half} {single}");
    let (mut errors, mut squares, mut far) = (0.0, 0.0, Vec::new());
    for (name, exact) in &exact {
        let rounded = &rounded[name];
        assert_eq!(rounded.kind(), Kind::Float, "{name}");
        let (error, size) = (norm(&(rounded - exact)), norm(exact));
        assert!(error > 0.0, "{name} did not change");
        println!("{name}: {:.5}", error / size);
        // Where the terms of a gradient cancel, as for queries and keys, more precision is lost.
        if error > 32.0 * ROUNDING * size {
            far.push(name);
        }
        errors += error * error;
        squares += size * size;
    }
    let error: f64 = (errors / squares).sqrt();
    model.set_precision(Precision::Fp32);
    let one_rounding = effect_of_one_rounding(&store, &mut model, &exact);
    println!("all: {error:.5}, one rounding: {one_rounding:.5}");
    // Each product is rounded three times: both operands and the accumulated result.
    assert!(error < 2.0 * one_rounding, "{error} {one_rounding}");
    assert!(far.is_empty(), "{far:?}");
}

/// Returns the relative change of the gradients in float32 when every weight of a product has a random relative error
/// up to that of one rounding.
fn effect_of_one_rounding(store: &nn::VarStore, model: &mut Arinar, exact: &BTreeMap<String, Tensor>) -> f64 {
    let mut weights: Vec<Tensor> = model.linears().map(|linear| linear.weight().shallow_clone()).collect();
    let kept: Vec<Tensor> = weights.iter().map(|weight| weight.detach().copy()).collect();
    tch::no_grad(|| {
        for (index, weight) in weights.iter_mut().enumerate() {
            let _ = weight.g_mul_(&(noise(&weight.size(), 100.0 + index as f64) * 2.0 * ROUNDING + 1.0));
        }
    });
    let changed = gradients(store, &loss(model));
    tch::no_grad(|| weights.iter_mut().zip(&kept).for_each(|(weight, kept)| weight.copy_(kept)));
    let square = |of: &dyn Fn(&str) -> Tensor| exact.keys().map(|name| norm(&of(name)).powi(2)).sum::<f64>();
    (square(&|name| &changed[name] - &exact[name]) / square(&|name| exact[name].shallow_clone())).sqrt()
}

#[test]
fn conditions_are_float32() {
    let (_store, mut model) = model();
    model.set_precision(Precision::Bf16);
    let mask = Mask::from_orders(&Tensor::arange(16, (Kind::Int64, Device::Cpu)).unsqueeze(0), 6);
    let tokens = noise(&[1, 16, 4], 0.1);
    let encoded = model.outer().encode(&tokens, &model.outer().null_embedding(1), &mask, false);
    let z = model.outer().decode(&encoded, &mask, false);
    assert_eq!((encoded.kind(), z.kind()), (Kind::Float, Kind::Float));
    let raw = model.head().forward(&z.squeeze_dim(0), &tokens.squeeze_dim(0));
    assert_eq!(raw.kind(), Kind::Float);
}

#[test]
fn all_matrices_but_the_first_and_last_are_multiplied_in_bf16() {
    let (store, mut model) = model();
    let edges = ["z_proj.weight", "class_emb.weight", "arhead.input_proj.weight", "arhead.head.weight"];
    let inside: BTreeSet<_> = weights::trainable(&store)
        .into_iter()
        .filter(|(name, parameter)| parameter.dim() == 2 && name.ends_with(".weight") && !edges.contains(&&**name))
        .map(|(_, parameter)| parameter.data_ptr())
        .collect();
    let listed: BTreeSet<_> = model.linears().map(|linear| linear.weight().data_ptr()).collect();
    assert_eq!(listed, inside);
    model.set_precision(Precision::Bf16);
    for linear in model.linears() {
        let inputs = linear.weight().size()[1];
        let product = linear.forward(&Tensor::ones([2, inputs], (Kind::Float, Device::Cpu)));
        assert_eq!((product.kind(), linear.weight().kind()), (Kind::BFloat16, Kind::Float));
    }
}

/// A feature source that chooses the mean of each mixture.
struct Means;

impl FeatureSource for Means {
    fn begin_step(&mut self, _: &Step<'_>) {}

    fn choose(&mut self, _: i64, conditional: &Mixture, null: Option<&Mixture>) -> Tensor {
        let mean = |mixture: &Mixture| (mixture.log_weight.exp() * &mixture.mean).sum_dim_intlist(-1, false, None);
        let other = null.map_or_else(|| mean(conditional), mean);
        mean(conditional) * 2.0 - other
    }
}

#[test]
fn frozen_weights_give_the_same_samples() {
    let guidance_schedule = GuidanceSchedule::Linear;
    let options = SampleOptions { steps: 4, guidance_scale: 2.0, guidance_schedule, temperature: 1.0, seed: 0 };
    let orders = noise(&[2, 16], 0.9).argsort(1, false);
    let (_store, mut model) = model();
    let mut latents = |precision, freeze| {
        model.set_precision(precision);
        if freeze {
            model.freeze();
        }
        let latents = model.sample_along(&[0, 2], &orders, &options, &mut Means, &mut |_, _| {});
        assert_eq!(latents.kind(), Kind::Float);
        latents
    };
    let single = latents(Precision::Fp32, false);
    assert_eq!(latents(Precision::Fp32, true), single);
    let half = latents(Precision::Bf16, false);
    assert_ne!(half, single);
    assert_eq!(latents(Precision::Bf16, true), half);
    assert!(model.linears().all(|linear| linear.weight().kind() == Kind::BFloat16));
}

#[test]
fn tensor_and_buffer_counts_match_a_real_model() {
    let mut config = ModelConfig::arinar_b();
    (config.outer.width, config.outer.encoder_depth, config.outer.decoder_depth) = (24, 2, 3);
    (config.head.width, config.head.depth) = (20, 2);
    let store = nn::VarStore::new(Device::Cpu);
    let _model = Arinar::new(&store.root(), &config);
    let (trained, buffers): (Vec<_>, Vec<_>) = weights::named(&store).into_values().partition(Tensor::requires_grad);
    let scalars = |tensors: &[Tensor]| tensors.iter().map(|tensor| tensor.numel() as i64).sum::<i64>();
    assert_eq!((config.tensor_count(), config.parameter_count()), (trained.len() as i64, scalars(&trained)));
    assert_eq!(config.buffer_count(), scalars(&buffers));
}
