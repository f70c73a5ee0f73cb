//! `precision: bf16`: it learns as fp32 does, and a run may change from one to the other.
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use arinar_checkpoint::load_weights;

use arinar_data::{format::View, read::Dataset};
use arinar_model::{Arinar, Precision, config::ModelConfig, mask::Mask, weights};
use arinar_tests::support::trainer::{Ended, Lab, launch, trainer};
use arinar_trainer::config::TrainConfig;
use tch::{Device, Kind, Tensor, nn};

/// Steps of the demo after which its weights are looked at: from small gradients to the largest ones of the run.
const STATES: [u64; 5] = [40, 80, 120, 160, 200];
/// Rounding to bfloat16 moves a number by at most this share of it: it keeps 8 binary digits.
const ROUNDING: f64 = 1.0 / 256.0;
/// Pictures that the losses and gradients are of.
const BATCH: i64 = 32;
/// Random changes of the weights by which the effect of a rounding is measured.
const TRIALS: usize = 6;
/// Weights that are used in float32 also in bf16 runs: those of the first and the last layers.
const IN_FLOAT32: [&str; 4] = ["z_proj.weight", "class_emb.weight", "arhead.input_proj.weight", "arhead.head.weight"];

/// The repository's root.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Encodes the demo's pictures.
fn demo_dataset(folder: &Path) {
    let ended = Command::new(trainer().with_file_name("arinar-data"))
        .args(["encode", "--image-size", "32", "--images"])
        .arg(repository().join("tests/data/noto-emoji-32.tar"))
        .arg("--vae")
        .arg(repository().join("data/assets/emoji-vae.safetensors"))
        .arg("--out")
        .arg(folder.join("dataset"))
        .output()
        .unwrap();
    Ended::of(ended).succeeded();
}

/// Trains the demo in float32 and keeps its weights at [`STATES`].
fn demo_run(folder: &Path) {
    let place = |name: &str| folder.join(name).display().to_string();
    let mut command = launch(0);
    command.arg(trainer()).arg("--config").arg(repository().join("configs/demo.yaml"));
    for value in [
        format!("data.url={}", place("dataset")),
        format!("run.dir={}", place("run")),
        format!("run.log_dir={}", place("logs")),
        format!("train.max_steps={}", STATES[STATES.len() - 1]),
        format!("checkpoint.every={} steps", STATES[0]),
        format!("checkpoint.keep_last={}", STATES.len()),
        "train.threads=1".to_owned(),
        "train.device=cpu".to_owned(),
    ] {
        command.arg("--set").arg(value);
    }
    Ended::of(command.output().unwrap()).succeeded();
}

/// Some latents of the demo's dataset with their labels: the means of the posterior, scaled.
fn demo_batch(folder: &Path, config: &ModelConfig) -> (Tensor, Tensor) {
    let dataset = Dataset::open(folder.join("dataset").to_str().unwrap()).unwrap();
    let [channels, side, _] = dataset.manifest.moments_shape().map(|size| size as i64);
    let samples = (0..BATCH as u64).map(|sample| {
        dataset.with_record(59 * sample, View::Original, |record| {
            let moments = Tensor::f_from_data_size(record.moments, &[channels, side, side], Kind::Half).unwrap();
            (moments.narrow(0, 0, channels / 2).to_kind(Kind::Float) * config.vae.scale, record.label)
        })
    });
    let (latents, labels): (Vec<Tensor>, Vec<i64>) = samples.map(Result::unwrap).unzip();
    (Tensor::stack(&latents, 0), Tensor::from_slice(&labels))
}

/// Numbers between -1 and 1 that are the same on every machine.
fn noise(shape: &[i64], salt: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    let large = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + 78.233 * salt).sin() * 43758.5453;
    ((&large - large.floor()) * 2.0 - 1.0).to_kind(Kind::Float).view(shape)
}

/// A model with the weights of a run, and what it is asked for.
struct State {
    store: nn::VarStore,
    model: Arinar,
    latents: Tensor,
    labels: Tensor,
}

impl State {
    fn of(folder: &Path, step: u64) -> Self {
        let run =
            load_weights::<TrainConfig>(folder.join(format!("run/step-{step:08}")).to_str().unwrap(), "model").unwrap();
        let store = nn::VarStore::new(Device::Cpu);
        let model = Arinar::new(&store.root(), &run.config.model);
        for (name, variable) in weights::named(&store) {
            tch::no_grad(|| variable.shallow_clone().copy_(&run.tensors[&name]));
        }
        let (latents, labels) = demo_batch(folder, &run.config.model);
        Self { store, model, latents, labels }
    }

    /// Loss and gradients of all parameters, in one row.
    fn loss_and_gradients(&mut self, precision: Precision) -> (f64, Tensor) {
        self.model.set_precision(precision);
        let drop_label = Tensor::zeros([BATCH], (Kind::Bool, Device::Cpu));
        let mask = Mask::from_orders(&noise(&[BATCH, 16], 0.5).argsort(1, false), 14);
        let loss = self.model.loss(&self.latents, &self.labels, &drop_label, &mask, false);
        loss.backward();
        let gradients: Vec<Tensor> = weights::trainable(&self.store)
            .into_iter()
            .map(|(_, parameter)| {
                let gradient = parameter.grad().flatten(0, -1).to_kind(Kind::Double);
                let _ = parameter.grad().zero_();
                gradient
            })
            .collect();
        (loss.double_value(&[]), Tensor::cat(&gradients, 0))
    }

    /// Loss and gradients in float32 after each weight of a matrix product is changed by a random share of itself, at most
    /// that of a rounding.
    fn with_rounded_weights(&mut self, trial: usize) -> (f64, Tensor) {
        let factors: Vec<(Tensor, Tensor)> = weights::trainable(&self.store)
            .into_iter()
            .filter(|(name, weight)| weight.dim() == 2 && name.ends_with(".weight") && !IN_FLOAT32.contains(&&**name))
            .enumerate()
            .map(|(index, (_, weight))| {
                let off = noise(&weight.size(), (100 * trial + index + 1) as f64) * ROUNDING;
                (weight, off + 1.0)
            })
            .collect();
        assert!(factors.len() > 20, "{} weights", factors.len());
        let kept: Vec<Tensor> = factors.iter().map(|(weight, _)| weight.detach().copy()).collect();
        tch::no_grad(|| factors.iter().for_each(|(weight, factor)| drop(weight.shallow_clone().g_mul_(factor))));
        let found = self.loss_and_gradients(Precision::Fp32);
        tch::no_grad(|| {
            factors.iter().zip(&kept).for_each(|((weight, _), kept)| weight.shallow_clone().copy_(kept));
        });
        found
    }
}

fn norm(tensor: &Tensor) -> f64 {
    tensor.norm().double_value(&[])
}

/// Root of the mean square.
fn typical(values: &[f64]) -> f64 {
    (values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64).sqrt()
}

/// Along the weights of one run, so that nothing adds up: two runs go apart whatever the difference that they begin
/// with, since the demo's training magnifies one tenfold in some 50 steps.
///
/// In bf16 each product of two numbers is rounded three times: both factors and, once for the sum, the result. How much
/// one of these matters is measured in float32, by random changes of the weights of the size of the largest rounding.
/// So gradients are expected to be off by the root of three times that at most, say twice. The loss is one number: four
/// standard deviations of it are allowed.
#[test]
fn losses_and_gradients_in_bf16_are_as_far_off_as_roundings_explain() {
    let folder = tempfile::tempdir().unwrap();
    demo_dataset(folder.path());
    demo_run(folder.path());
    for step in STATES {
        let mut state = State::of(folder.path(), step);
        let (loss, gradients) = state.loss_and_gradients(Precision::Fp32);
        let size = norm(&gradients);
        let (half_loss, half_gradients) = state.loss_and_gradients(Precision::Bf16);
        let (loss_error, error) = ((half_loss - loss).abs(), norm(&(half_gradients - &gradients)) / size);
        let trials: Vec<(f64, f64)> = (0..TRIALS)
            .map(|trial| {
                let (other_loss, other_gradients) = state.with_rounded_weights(trial);
                (other_loss - loss, norm(&(other_gradients - &gradients)) / size)
            })
            .collect();
        let (loss_errors, errors): (Vec<f64>, Vec<f64>) = trials.into_iter().unzip();
        let (one_rounding_loss, one_rounding) = (typical(&loss_errors), typical(&errors));
        println!(
            "step {step}: loss {loss:.4}, off by {loss_error:.5}, a rounding {one_rounding_loss:.5}; gradients of size \
             {size:.1}, off by {error:.4} of it, a rounding {one_rounding:.4}"
        );
        assert!(loss_error > 0.0 && error > ROUNDING / 16.0, "step {step}: this was not bf16");
        assert!(loss_error < 4.0 * 2.0 * one_rounding_loss, "step {step}: {loss_error} {one_rounding_loss}");
        assert!(error < 2.0 * one_rounding, "step {step}: {error} {one_rounding}");
    }
}

/// Seeds of the runs that are compared.
const SEEDS: std::ops::Range<u64> = 1..9;
/// Steps of each, and the last of them over which its losses are averaged: four epochs.
const RUN_STEPS: u64 = 120;
const LAST_STEPS: usize = 24;

/// The losses that runs with [`SEEDS`] reach.
fn reached(precision: &str) -> Vec<f32> {
    let loss = |seed: u64| {
        let lab = Lab::new();
        let ended = lab.train(
            0,
            &[
                &format!("precision={precision}"),
                &format!("seed={seed}"),
                &format!("train.max_steps={RUN_STEPS}"),
                "model.outer.dropout=0.0",
            ],
        );
        assert!(ended.succeeded().stdout.contains(&format!("precision {precision}")));
        let losses: Vec<f32> = lab.curve("logs", "train_loss").into_values().collect();
        assert_eq!(losses.len() as u64, RUN_STEPS);
        let last = &losses[losses.len() - LAST_STEPS..];
        last.iter().sum::<f32>() / last.len() as f32
    };
    SEEDS.map(loss).collect()
}

/// The mean of eight runs varies by a third of what single runs do, and eight runs spread over almost three times as
/// much: if both precisions learn alike, one lies within the other with near certainty.
#[test]
fn over_seeds_bf16_reaches_the_losses_that_fp32_reaches() {
    let (single, half) = (reached("fp32"), reached("bf16"));
    println!("fp32 {single:.3?}\nbf16 {half:.3?}");
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let within =
        |value: f32, losses: &[f32]| losses.iter().any(|loss| *loss < value) && losses.iter().any(|loss| *loss > value);
    assert!(single.iter().zip(&half).all(|(single, half)| single != half), "this was not bf16");
    assert!(within(mean(&half), &single) && within(mean(&single), &half), "{single:?} {half:?}");
}

#[test]
fn a_run_in_bf16_resumes_to_the_same_bits() {
    const BF16: &str = "precision=bf16";
    let (whole, parts) = (Lab::new(), Lab::new());
    whole.train(2, &[BF16, "train.max_steps=12"]).succeeded();
    for steps in [5, 12] {
        parts.train(2, &[BF16, &format!("train.max_steps={steps}")]).succeeded();
    }
    assert!(whole.tensors("run/step-00000012") == parts.tensors("run/step-00000012"));
    let single = Lab::new();
    single.train(2, &["train.max_steps=12"]).succeeded();
    assert!(whole.tensors("run/step-00000012") != single.tensors("run/step-00000012"), "this was not bf16");
}

#[test]
fn a_run_goes_on_in_another_precision() {
    for (first, second) in [("fp32", "bf16"), ("bf16", "fp32")] {
        let lab = Lab::new();
        let precision = |name| format!("precision={name}");
        lab.train(0, &[&precision(first), "train.max_steps=3"]).succeeded();
        let resumed = lab.train(0, &[&precision(second), "train.max_steps=6"]).succeeded();
        assert!(resumed.stdout.contains("resuming from"), "{}", resumed.stdout);
        assert!(resumed.stdout.contains(&format!("precision {second}")), "{}", resumed.stdout);
        // Everything kept is float32: as many bytes of it after either precision.
        let sizes = |step: &str| -> Vec<(String, usize)> {
            lab.tensors(step).into_iter().map(|(name, (_, bytes))| (name, bytes.len())).collect()
        };
        assert_eq!(sizes("run/step-00000003"), sizes("run/step-00000006"));
        let loss = lab.curve("logs", "train_loss");
        assert_eq!(loss.keys().copied().collect::<Vec<_>>(), (1..=6).collect::<Vec<_>>());
        assert!(loss.values().all(|loss| loss.is_finite()));
    }
}
