//! The number format of the matrix products.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Number format of the matrix products of a forward and backward pass.
///
/// Parameters and their gradients are float32 either way, and so are the residual streams, layer norms, the first and
/// the last layer, the mixtures and the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32.
    #[default]
    Fp32,
    /// bfloat16 factors, summed in float32.
    Bf16,
}

impl Precision {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        }
    }

    /// Whether a device computes in this format by itself; if not, it does so far slower than in float32.
    pub fn is_native(self, device: Device) -> bool {
        match (self, device) {
            (Self::Bf16, Device::Cpu) => cpu_has_bf16(),
            _ => true,
        }
    }

    /// Kind of the factors and products of a layer whose parameters are of `parameters`.
    pub(crate) fn kind(self, parameters: Kind) -> Kind {
        match self {
            Self::Fp32 => parameters,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// `tensor` as a factor of a product; of the right kind already, it is not copied.
    pub(crate) fn cast(self, tensor: &Tensor) -> Tensor {
        tensor.to_kind(self.kind(tensor.kind()))
    }
}

/// Whether the processor has instructions for products of bfloat16.
fn cpu_has_bf16() -> bool {
    // Processors with AMX have these, too.
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use tch::nn;

    use super::*;
    use crate::config::{HeadConfig, HeadKind, LatentConfig, ModelConfig, OuterConfig, OuterKind};
    use crate::gmm::Mixture;
    use crate::guidance::{FeatureSource, Step};
    use crate::mask::Mask;
    use crate::schedule::GuidanceSchedule;
    use crate::{Arinar, SampleOptions, weights};

    /// Rounding to bfloat16, which keeps 8 binary digits, moves a number by this share of it at most if its digits are
    /// large, and by twice as much if they are small.
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

    /// Numbers between -1 and 1 without libtorch's generator, which all tests of the process share.
    fn noise(shape: &[i64], salt: f64) -> Tensor {
        let count: i64 = shape.iter().product();
        let large = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + salt).sin() * 43758.5453;
        ((&large - large.floor()) * 2.0 - 1.0).to_kind(Kind::Float).view(shape)
    }

    /// A model whose parameters are all of ordinary size: at the start some are so small that their branches do nothing.
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
    fn losses_and_gradients_are_float32_and_near_those_of_float32() {
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
            // Where the terms of a gradient cancel, as those of queries and keys do, more of its digits are lost.
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
        // Each product is rounded three times: both factors, and the sum of the products.
        assert!(error < 2.0 * one_rounding, "{error} {one_rounding}");
        assert!(far.is_empty(), "{far:?}");
    }

    /// By which share of them the gradients change, in float32, when every weight of a product is off by a random share
    /// of itself, up to that of a rounding.
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
    fn every_matrix_inside_is_multiplied_in_bf16() {
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

    /// Takes the mean of each mixture.
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
}
