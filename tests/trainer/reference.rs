//! Compares the real trainer with the reference implementation, step by step.
//!
//! The trainer saves a checkpoint after every step. The reference computes each step from the checkpoint before it, and
//! the first step from the seed, so that rounding errors do not accumulate and all steps together cover the run.
//!
//! With `ARINAR_TEST_DEVICE=cuda` the trainer runs as one rank on the first GPU. The reference then runs on the CPU,
//! except with dropout or bf16, whose numbers depend on the device.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use arinar_collective::device;
use arinar_model::config::ModelConfig;
use arinar_model::{Precision, weights};
use arinar_tests::reference::records::Records;
use arinar_tests::reference::schedule::learning_rate;
use arinar_tests::reference::training::{Passes, Run, Trained};
use arinar_tests::support::trainer::{Lab, SAMPLES, tensor};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// 48 samples at 9 per step: the sixth step begins in the first epoch and ends in the second.
const STEPS: u64 = 7;
const GLOBAL_BATCH: u64 = 9;
/// The step after which the run is stopped and resumed.
const RESUMED: u64 = 3;
/// The learning rate reaches its peak after three steps.
const WARMUP_EPOCHS: f64 = 3.0 * GLOBAL_BATCH as f64 / SAMPLES as f64;
const LR_PER_256: f64 = 0.05;

/// The settings that differ between the runs.
#[derive(Clone, Copy)]
struct Case {
    ranks: u64,
    accumulation: u64,
    dropout: f64,
    label_drop: f64,
    grad_clip: f64,
    /// Epochs of a cosine schedule; `None` for the constant one.
    cosine: Option<f64>,
    window: usize,
    precision: Precision,
}

const PLAIN: Case = Case {
    ranks: 1,
    accumulation: 1,
    dropout: 0.0,
    label_drop: 0.3,
    grad_clip: 1e9,
    cosine: None,
    window: 0,
    precision: Precision::Fp32,
};

impl Case {
    fn overrides(&self) -> Vec<String> {
        let micro = GLOBAL_BATCH / self.ranks / self.accumulation;
        let (schedule, epochs) = self.cosine.map_or(("constant", 400.0), |epochs| ("cosine", epochs));
        let device = if test_device().is_cuda() { "cuda" } else { "cpu" };
        let values = [
            ("batch.global", GLOBAL_BATCH.to_string()),
            ("batch.micro", micro.to_string()),
            ("model.outer.dropout", self.dropout.to_string()),
            ("model.outer.label_drop", self.label_drop.to_string()),
            ("optim.lr_per_256", LR_PER_256.to_string()),
            ("optim.betas", "[0.9, 0.95]".to_owned()),
            ("optim.weight_decay", "0.3".to_owned()),
            ("optim.grad_clip", self.grad_clip.to_string()),
            ("optim.ema", "0.8".to_owned()),
            ("optim.warmup_epochs", WARMUP_EPOCHS.to_string()),
            ("optim.schedule", schedule.to_owned()),
            ("optim.epochs", epochs.to_string()),
            ("data.shuffle_window", self.window.to_string()),
            ("precision", self.precision.name().to_owned()),
            ("train.device", device.to_owned()),
            ("checkpoint.every", "1 steps".to_owned()),
            ("checkpoint.keep_last", "100".to_owned()),
        ];
        values.map(|(key, value)| format!("{key}={value}")).to_vec()
    }

    /// Relative error allowed for losses and gradients. The latents of the reference differ by 1e-7, which occasionally
    /// changes how a value is rounded to bf16.
    fn tolerance(&self) -> f64 {
        match (self.precision, test_device()) {
            // One unit in the last place.
            (Precision::Bf16, _) => 1.0 / 256.0,
            (Precision::Fp32, Device::Cpu) => 1e-5,
            (Precision::Fp32, _) => 1e-4,
        }
    }

    fn learning_rate(&self, step: u64) -> f64 {
        let peak = LR_PER_256 * GLOBAL_BATCH as f64 / 256.0;
        let epochs = self.cosine.unwrap_or(400.0);
        learning_rate(peak, WARMUP_EPOCHS, self.cosine.is_some(), epochs, epoch(step))
    }

    fn run(&self, model: ModelConfig) -> Run {
        let alike = self.dropout == 0.0 && self.precision == Precision::Fp32;
        let (seed, precision, device) = (5, self.precision, if alike { Device::Cpu } else { test_device() });
        let (global_batch, ranks, accumulation) = (GLOBAL_BATCH, self.ranks, self.accumulation);
        let (betas, eps, weight_decay, grad_clip, ema) = ([0.9, 0.95], 1e-8, 0.3, self.grad_clip, 0.8);
        let window = self.window;
        Run {
            seed,
            model,
            precision,
            device,
            global_batch,
            ranks,
            accumulation,
            window,
            betas,
            eps,
            weight_decay,
            grad_clip,
            ema,
        }
    }
}

/// The device that `ARINAR_TEST_DEVICE` selects, the CPU by default.
fn test_device() -> Device {
    match std::env::var("ARINAR_TEST_DEVICE").as_deref() {
        Ok("cuda") => {
            device::load_libtorch_cuda().unwrap();
            Device::Cuda(0)
        }
        Ok(other) if !other.is_empty() && other != "cpu" => panic!("ARINAR_TEST_DEVICE is cpu or cuda, not {other}"),
        _ => Device::Cpu,
    }
}

fn epoch(step: u64) -> f64 {
    (step * GLOBAL_BATCH) as f64 / SAMPLES as f64
}

/// A run of the real trainer, stopped and resumed once, with its curves.
struct Trial {
    lab: Lab,
    curves: BTreeMap<&'static str, BTreeMap<u64, f32>>,
}

impl Trial {
    fn train(case: &Case) -> Self {
        let lab = Lab::new();
        for until in [RESUMED, STEPS] {
            let steps = format!("train.max_steps={until}");
            let mut overrides = case.overrides();
            overrides.push(steps);
            let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
            let ranks = if case.ranks == 1 { 0 } else { case.ranks as usize };
            lab.train(ranks, &overrides).succeeded();
        }
        let tags = ["train_loss", "lr", "grad_norm", "epoch", "images_per_second", "step_time"];
        let curves = tags.map(|tag| (tag, lab.curve("logs", tag)));
        for (tag, curve) in &curves {
            assert_eq!(curve.keys().copied().collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>(), "{tag}");
        }
        Self { lab, curves: curves.into() }
    }

    fn logged(&self, tag: &str, step: u64) -> f64 {
        self.curves[tag][&step].into()
    }

    fn state(&self, step: u64) -> Value {
        let path = self.lab.path(&format!("run/step-{step:08}/state.json"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }
}

/// Asserts that two numbers agree within a relative error, or an absolute one for a loss below 1, which may be zero.
#[track_caller]
fn assert_close(what: &str, step: u64, found: f64, expected: f64, tolerance: f64) {
    let limit = tolerance * if what == "train_loss" { expected.abs().max(1.0) } else { expected.abs() };
    assert!((found - expected).abs() <= limit, "{what} of step {step} is {found}, but the reference is {expected}");
}

/// Asserts that every element is off by at most `tolerance` times its `scale`.
#[track_caller]
fn assert_all_close(
    what: &str,
    name: &str,
    step: u64,
    found: &Tensor,
    expected: &Tensor,
    scale: &Tensor,
    tolerance: f64,
) {
    assert_eq!(found.size(), expected.size(), "{name}");
    let error = (found.to_kind(Kind::Double) - expected).abs() / (scale.to_kind(Kind::Double) + 1e-30);
    let worst = error.max().double_value(&[]);
    assert!(worst <= tolerance, "step {step}: {what} of {name} has a relative error of {worst:e}");
}

/// Trains and compares every step with the reference.
fn compare_with_reference(case: &Case) {
    let ranks = if test_device().is_cuda() { 1 } else { case.ranks };
    let case = &Case { ranks, ..*case };
    let trial = Trial::train(case);
    let records = Records::read(&trial.lab.path("dataset"));
    assert_eq!((records.records.len() as u64, records.shards.len()), (SAMPLES, 2));
    tch::set_num_threads(1);
    let model: ModelConfig = serde_json::from_value(trial.state(1)["config"]["model"].clone()).unwrap();
    assert_eq!((model.outer.dropout, model.outer.label_drop), (case.dropout, case.label_drop));
    let run = case.run(model);
    let mut before = run.begin();
    let mut masked = Vec::new();
    let mut dropped = 0;
    for step in 1..=STEPS {
        let passes = run.passes(&records, &before.weights, step - 1);
        let after = trial.lab.trained(step);
        check_logs(&trial, case, &run, &passes, step);
        check_update(case, &run, &before, &after, &passes, step);
        masked.push(passes.masked);
        dropped += passes.dropped;
        before = after;
    }
    // The run must cover what it is meant to test.
    masked.dedup();
    assert!(masked.len() > 3, "{masked:?}");
    assert!(dropped > 0 && dropped < (STEPS * GLOBAL_BATCH) as usize, "{dropped}");
}

fn check_logs(trial: &Trial, case: &Case, run: &Run, passes: &Passes, step: u64) {
    let (loss, norm) = (passes.loss, run.grad_norm(passes));
    assert_close("train_loss", step, trial.logged("train_loss", step), loss, case.tolerance());
    assert_close("grad_norm", step, trial.logged("grad_norm", step), norm, case.tolerance());
    let rate = case.learning_rate(step - 1);
    if case.cosine.is_none() {
        let thirds = (step - 1).min(3) as f64 / 3.0;
        assert_close("lr", step, rate, thirds * LR_PER_256 * GLOBAL_BATCH as f64 / 256.0, 1e-12);
    }
    assert_close("lr", step, trial.logged("lr", step), rate, 1e-6);
    assert_close("epoch", step, trial.logged("epoch", step), epoch(step), 1e-6);
    let images = trial.logged("images_per_second", step) * trial.logged("step_time", step);
    assert_close("images/s", step, images, GLOBAL_BATCH as f64, 1e-5);
    let state = trial.state(step);
    assert_eq!((&state["step"], &state["optimizer_steps"]), (&step.into(), &step.into()));
    assert_close("the state's epoch", step, state["epoch"].as_f64().unwrap(), epoch(step), 1e-12);
    let position = state["token"]["epoch"].as_u64().unwrap() * SAMPLES + state["token"]["position"].as_u64().unwrap();
    assert_eq!(position, step * GLOBAL_BATCH);
}

fn check_update(case: &Case, run: &Run, before: &Trained, after: &Trained, passes: &Passes, step: u64) {
    let (moments, tolerance) = (run.moments(before, passes), 2.0 * case.tolerance());
    for tensors in [&after.weights, &after.ema, &after.first_moment, &after.second_moment] {
        assert!(tensors.keys().eq(passes.gradients.keys()), "step {step}: the set of trained tensors is wrong");
    }
    for name in passes.gradients.keys() {
        let largest = |tensor: &Tensor| tensor.abs().max().expand_as(tensor);
        let [first, second] = [&after.first_moment[name], &after.second_moment[name]];
        assert_all_close(
            "the first moment",
            name,
            step,
            first,
            &moments[0][name],
            &largest(&moments[0][name]),
            tolerance,
        );
        assert_all_close(
            "the second moment",
            name,
            step,
            second,
            &moments[1][name],
            &largest(&moments[1][name]),
            2.0 * tolerance,
        );
        // Start from the saved moments, so that a gradient that consists only of rounding errors does not matter.
        let weights = &before.weights[name];
        let movement = run.movement(name, weights, [first, second], case.learning_rate(step - 1), step as i32);
        let expected = weights.to_kind(Kind::Double) + &movement;
        let scale = weights.abs().to_kind(Kind::Double) + movement.abs();
        assert_all_close("the weight", name, step, &after.weights[name], &expected, &scale, 1e-6);
        let average = run.average(&before.ema[name], &after.weights[name]);
        let scale = before.ema[name].abs() + after.weights[name].abs();
        assert_all_close("the average", name, step, &after.ema[name], &average, &scale, 1e-6);
    }
}

#[test]
fn one_rank_matches_the_reference() {
    compare_with_reference(&PLAIN);
}

#[test]
fn one_rank_with_dropout_accumulation_and_clipping_matches_the_reference() {
    compare_with_reference(&Case { accumulation: 3, dropout: 0.1, grad_clip: 1e-3, ..PLAIN });
}

#[test]
fn one_rank_in_bf16_matches_the_reference() {
    compare_with_reference(&Case { dropout: 0.1, grad_clip: 3.0, precision: Precision::Bf16, ..PLAIN });
}

#[test]
fn three_ranks_with_windows_and_a_cosine_schedule_match_the_reference() {
    compare_with_reference(&Case { ranks: 3, accumulation: 3, grad_clip: 1.0, cosine: Some(1.5), window: 1, ..PLAIN });
}

#[test]
fn three_ranks_with_dropout_match_the_reference() {
    compare_with_reference(&Case { ranks: 3, dropout: 0.1, grad_clip: 3.0, ..PLAIN });
}

/// A class embedding that no sample uses gets no gradient: that of the null class without label drop, those of the
/// classes when every label is dropped.
#[test]
fn labels_are_dropped_as_often_as_configured() {
    let moved = |label_drop: &str| {
        let lab = Lab::new();
        let drop = format!("model.outer.label_drop={label_drop}");
        lab.train(0, &["train.max_steps=3", "optim.warmup_epochs=0", &drop]).succeeded();
        let tensors = lab.tensors("run/step-00000003");
        ["class_emb.weight", "fake_latent"].map(|name| {
            let (shape, bytes) = &tensors[&format!("optimizer/exp_avg_sq.{name}")];
            tensor(shape, bytes).ne(0.0).any().int64_value(&[]) != 0
        })
    };
    assert_eq!(moved("0"), [true, false]);
    assert_eq!(moved("0.999999999"), [false, true]);
    assert_eq!(moved("0.5"), [true, true]);
    // The reference spells out the prefix of the head's parameters.
    assert_eq!(weights::HEAD_PREFIX, "arhead.");
}
