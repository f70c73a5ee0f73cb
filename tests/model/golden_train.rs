//! Compares training with the official code: the loss, the gradients of all parameters, and AdamW steps with weight
//! decay groups, clipping and EMA. The limits are those of the manifest's "recommended_check".

#![allow(clippy::unwrap_used)]

use arinar_model::mask::Mask;
use arinar_model::{Arinar, weights};
use arinar_tests::golden::{Golden, max_error};
use arinar_trainer::clip::{clip_coefficient, grad_norm};
use arinar_trainer::ema::Ema;
use arinar_trainer::optimizer::{AdamW, AdamWConfig, Update};
use arinar_trainer::parameters::FlatParameters;
use tch::{Device, Kind, Tensor, nn};

struct Case {
    golden: Golden,
    store: nn::VarStore,
    model: Arinar,
}

fn case() -> Case {
    let golden = Golden::read("arinar_train");
    let store = nn::VarStore::new(Device::Cpu);
    let model = Arinar::new(&store.root(), &golden.model_config());
    golden.fill(&store);
    Case { golden, store, model }
}

impl Case {
    fn loss(&self, mask: &Mask) -> Tensor {
        let labels = self.golden.tensor("in.labels");
        let keep_labels = labels.zeros_like().to_kind(Kind::Bool);
        self.model.loss(&self.golden.tensor("in.latents"), &labels, &keep_labels, mask, true)
    }

    fn mask(&self) -> Mask {
        Mask::from_dense(&self.golden.tensor("in.mask"))
    }

    fn losses(&self) -> Vec<f64> {
        self.golden.reals("/values/losses_fp64")
    }
}

fn relative(actual: f64, expected: f64) -> f64 {
    (actual - expected).abs() / expected.abs()
}

#[test]
fn the_loss_matches_the_official_one_for_any_order_of_tokens() {
    let case = case();
    let expected = case.losses()[0];
    let ordered = Mask::from_orders(&case.golden.tensor("in.orders"), case.golden.size("num_masked"));
    for mask in [case.mask(), ordered] {
        let loss = case.loss(&mask).double_value(&[]);
        assert!(relative(loss, expected) < 1e-5, "{loss} {expected}");
    }
}

#[test]
fn the_gradients_match_the_official_ones() {
    let case = case();
    case.loss(&case.mask()).backward();
    let mut comparison = case.golden.comparison();
    let parameters = weights::trainable(&case.store);
    for (name, parameter) in &parameters {
        let expected = case.golden.tensor(&format!("grad.{name}"));
        let gradient = parameter.grad();
        // The null class is unused, so its gradient is exactly zero, and libtorch need not store one.
        let gradient = if gradient.defined() { gradient } else { parameter.zeros_like() };
        let limit = 2e-5 * expected.abs().max().double_value(&[]);
        comparison.check_within(&format!("grad.{name}"), &gradient, &expected, limit);
    }
    comparison.finish();
}

/// Parameters and EMA after the recorded number of steps.
struct Trained {
    case: Case,
    parameters: FlatParameters,
    ema: Ema,
}

fn train() -> Trained {
    let case = case();
    let golden = &case.golden;
    let config = |key: &str| golden.real(&format!("/config/{key}"));
    let betas = golden.reals("/config/betas");
    let mut parameters = FlatParameters::new(&weights::trainable(&case.store), weights::decays).unwrap();
    let adamw =
        AdamWConfig { betas: [betas[0], betas[1]], eps: config("adam_eps"), weight_decay: config("weight_decay") };
    let mut optimizer = AdamW::new(&parameters, adamw);
    let mut ema = Ema::new(&parameters, config("ema_rate"));
    let (losses, norms) = (case.losses(), golden.reals("/values/grad_norms_fp64"));
    for step in 0..golden.size("steps") as usize {
        let loss = case.loss(&case.mask());
        loss.backward();
        check_loss(step, loss.double_value(&[]), losses[step]);
        let norm = grad_norm(&parameters.gradients());
        assert!(relative(norm, norms[step]) < 1e-4, "step {step}: {norm} {}", norms[step]);
        let scale = clip_coefficient(norm, config("grad_clip"));
        optimizer.step(&mut parameters, &mut ema, Update { learning_rate: config("lr"), gradient_scale: scale });
    }
    let last = losses.len() - 1;
    check_loss(last, case.loss(&case.mask()).double_value(&[]), losses[last]);
    Trained { case, parameters, ema }
}

fn check_loss(step: usize, loss: f64, expected: f64) {
    let limit = if step == 0 { 1e-5 } else { 1e-4 };
    assert!(relative(loss, expected) < limit, "step {step}: {loss} {expected}");
}

/// Returns a trained tensor and its golden value, flattened and without the key bias, whose gradient is only rounding
/// noise and which Adam therefore moves at random.
fn comparable(golden: &Golden, name: &str, actual: &Tensor) -> (Tensor, Tensor) {
    let expected = golden.tensor(name).flatten(0, -1);
    let actual = actual.flatten(0, -1);
    let Some(slice) = golden.value("/tolerances").get(name).and_then(|entry| entry.get("key_bias_slice")) else {
        return (actual, expected);
    };
    let (start, end) = (slice[0].as_i64().unwrap(), slice[1].as_i64().unwrap());
    let length = expected.size()[0];
    let without = |tensor: &Tensor| Tensor::cat(&[tensor.narrow(0, 0, start), tensor.narrow(0, end, length - end)], 0);
    (without(&actual), without(&expected))
}

fn share_above(error: &Tensor, limit: f64) -> f64 {
    error.gt(limit).to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
}

#[test]
fn parameters_after_three_steps_match_the_official_ones() {
    let Trained { case, parameters, .. } = train();
    let (mut squares, mut elements) = (0.0, 0.0);
    for slot in parameters.slots() {
        let name = format!("final.{}", slot.name);
        let (actual, expected) = comparable(&case.golden, &name, &slot.view(parameters.values()));
        let error = (actual.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs();
        assert!(share_above(&error, 1e-5) <= 0.005, "{name}: {error}");
        assert!(max_error(&actual, &expected) <= 3.0 * case.golden.real("/config/lr"), "{name}");
        squares += error.square().sum(Kind::Double).double_value(&[]);
        elements += error.numel() as f64;
    }
    let rms: f64 = (squares / elements).sqrt();
    println!("RMS error of all parameters: {rms:.2e}");
    assert!(rms < 5e-6, "{rms}");
}

#[test]
fn the_ema_after_three_steps_matches_the_official_one() {
    let Trained { case, parameters, ema } = train();
    for slot in parameters.slots() {
        let name = format!("ema.{}", slot.name);
        let (actual, expected) = comparable(&case.golden, &name, &slot.view(ema.values()));
        let error = (actual.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs();
        assert!(share_above(&error, 1e-6) <= 0.005, "{name}");
        assert!(max_error(&actual, &expected) < 3e-5, "{name}");
    }
}

#[test]
fn parameters_without_gradients_only_decay() {
    let Trained { case, parameters, .. } = train();
    let labels: Vec<i64> = Vec::try_from(case.golden.tensor("in.labels")).unwrap();
    let config = case.golden.model_config();
    let absent: Vec<i64> = (0..config.classes).filter(|class| !labels.contains(class)).collect();
    assert!(!absent.is_empty(), "the golden batch contains every class");
    let absent = Tensor::from_slice(&absent);
    let trained = |name: &str| {
        let slot = parameters.slots().iter().find(|slot| slot.name == name).unwrap();
        slot.view(parameters.values())
    };
    // Allow one unit in the last place per step: half for the product, half for the factor.
    let limit = case.golden.size("steps") as f64 * f64::from(f32::EPSILON);
    for (name, rows) in [("fake_latent", Tensor::from_slice(&[0_i64])), ("class_emb.weight", absent)] {
        let expected = case.golden.tensor(&format!("final.{name}")).index_select(0, &rows);
        let actual = trained(name).index_select(0, &rows);
        let error = ((&actual - &expected) / &expected).abs().max().double_value(&[]);
        assert!(error <= limit, "{name}: {error}");
        assert_ne!(actual, case.golden.tensor(name).index_select(0, &rows), "{name} did not decay");
    }
}
