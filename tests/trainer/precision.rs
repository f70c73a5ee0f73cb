//! Tests of `precision: bf16`: it learns like fp32, and a run may switch between them.
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use arinar_checkpoint::load_weights;

use arinar_data::{format::View, read::Dataset};
use arinar_model::{Arinar, Precision, config::ModelConfig, mask::Mask, weights};
use arinar_tests::support::trainer::{Lab, ProcessOutput, launch, trainer};
use arinar_trainer::config::TrainConfig;
use tch::{Device, Kind, Tensor, nn};

/// Steps of the demo whose weights are examined: from small gradients to the largest ones of the run.
const STATES: [u64; 5] = [40, 80, 120, 160, 200];
/// Maximum relative error of rounding to bfloat16, which keeps 8 binary digits.
const ROUNDING: f64 = 1.0 / 256.0;
/// Images in the batch for losses and gradients.
const BATCH: i64 = 32;
/// Number of random changes of the weights with which the effect of rounding is measured.
const TRIALS: usize = 6;
/// Weights that bf16 runs also use in float32: those of the first and last layers.
const IN_FLOAT32: [&str; 4] = ["z_proj.weight", "class_emb.weight", "arhead.input_proj.weight", "arhead.head.weight"];

/// Returns the root of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Encodes the demo's images.
fn demo_dataset(folder: &Path) {
    let encoded = Command::new(trainer().with_file_name("arinar-data"))
        .args(["encode", "--image-size", "32", "--images"])
        .arg(repository().join("tests/data/noto-emoji-32.tar"))
        .arg("--vae")
        .arg(repository().join("data/assets/emoji-vae.safetensors"))
        .arg("--out")
        .arg(folder.join("dataset"))
        .output()
        .unwrap();
    ProcessOutput::of(encoded).succeeded();
}

/// Trains the demo in float32 and keeps its weights at [`STATES`].
fn demo_run(folder: &Path) {
    let path = |name: &str| folder.join(name).display().to_string();
    let mut command = launch(0);
    command.arg(trainer()).arg("--config").arg(repository().join("configs/demo.yaml"));
    for value in [
        format!("data.url={}", path("dataset")),
        format!("run.dir={}", path("run")),
        format!("run.log_dir={}", path("logs")),
        format!("train.max_steps={}", STATES[STATES.len() - 1]),
        format!("checkpoint.every={} steps", STATES[0]),
        format!("checkpoint.keep_last={}", STATES.len()),
        "train.threads=1".to_owned(),
        "train.device=cpu".to_owned(),
    ] {
        command.arg("--set").arg(value);
    }
    ProcessOutput::of(command.output().unwrap()).succeeded();
}

/// Returns some latents of the demo's dataset, the scaled means of the posterior, with their labels.
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

/// Returns numbers between -1 and 1 that are the same on every machine.
fn noise(shape: &[i64], salt: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    let large = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + 78.233 * salt).sin() * 43758.5453;
    ((&large - large.floor()) * 2.0 - 1.0).to_kind(Kind::Float).view(shape)
}

/// A model with the weights of a run, and a batch for it.
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

    /// Returns the loss and the gradients of all parameters as one vector.
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

    /// Returns the float32 loss and gradients after each weight of a matrix product is changed by a random relative
    /// error of at most [`ROUNDING`].
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

/// Returns the root of the mean square.
fn root_mean_square(values: &[f64]) -> f64 {
    (values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64).sqrt()
}

/// Compares both precisions at weights of a single run, so that errors do not accumulate: two runs diverge from any
/// initial difference, because the demo's training magnifies it tenfold in some 50 steps.
///
/// In bf16, each product is rounded three times: both factors and, once for the sum, the result. The effect of one
/// rounding is measured in float32 by random changes of the weights by up to the largest rounding error. The expected
/// error of the gradients is thus at most the square root of three times that effect; the test allows twice. The loss
/// is a single number, for which the test allows four standard deviations.
#[test]
fn bf16_errors_of_losses_and_gradients_are_explained_by_rounding() {
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
        let (one_rounding_loss, one_rounding) = (root_mean_square(&loss_errors), root_mean_square(&errors));
        println!(
            "step {step}: loss {loss:.4}, error {loss_error:.5}, one rounding {one_rounding_loss:.5}; gradient norm \
             {size:.1}, relative error {error:.4}, one rounding {one_rounding:.4}"
        );
        assert!(loss_error > 0.0 && error > ROUNDING / 16.0, "step {step}: the run did not use bf16");
        assert!(loss_error < 4.0 * 2.0 * one_rounding_loss, "step {step}: {loss_error} {one_rounding_loss}");
        assert!(error < 2.0 * one_rounding, "step {step}: {error} {one_rounding}");
    }
}

/// Seeds of the compared runs.
const SEEDS: std::ops::Range<u64> = 1..9;
/// Steps of each run.
const RUN_STEPS: u64 = 120;
/// Final steps over which the losses are averaged: four epochs.
const LAST_STEPS: usize = 24;

/// Returns the final losses of runs with [`SEEDS`].
fn final_losses(precision: &str) -> Vec<f32> {
    let loss = |seed: u64| {
        let lab = Lab::new();
        let output = lab.train(
            0,
            &[
                &format!("precision={precision}"),
                &format!("seed={seed}"),
                &format!("train.max_steps={RUN_STEPS}"),
                "model.outer.dropout=0.0",
            ],
        );
        assert!(output.succeeded().stdout.contains(&format!("precision {precision}")));
        let losses: Vec<f32> = lab.curve("logs", "train_loss").into_values().collect();
        assert_eq!(losses.len() as u64, RUN_STEPS);
        let last = &losses[losses.len() - LAST_STEPS..];
        last.iter().sum::<f32>() / last.len() as f32
    };
    SEEDS.map(loss).collect()
}

/// The mean of eight runs varies by a third as much as single runs, and eight runs span almost three standard
/// deviations. If both precisions learn equally well, the mean of each almost certainly lies within the range of the
/// other.
#[test]
fn bf16_reaches_the_losses_of_fp32() {
    let (single, half) = (final_losses("fp32"), final_losses("bf16"));
    println!("fp32 {single:.3?}\nbf16 {half:.3?}");
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let within =
        |value: f32, losses: &[f32]| losses.iter().any(|loss| *loss < value) && losses.iter().any(|loss| *loss > value);
    assert!(single.iter().zip(&half).all(|(single, half)| single != half), "the run did not use bf16");
    assert!(within(mean(&half), &single) && within(mean(&single), &half), "{single:?} {half:?}");
}

#[test]
fn a_bf16_run_resumes_bit_identically() {
    const BF16: &str = "precision=bf16";
    let (whole, parts) = (Lab::new(), Lab::new());
    whole.train(2, &[BF16, "train.max_steps=12"]).succeeded();
    for steps in [5, 12] {
        parts.train(2, &[BF16, &format!("train.max_steps={steps}")]).succeeded();
    }
    assert!(whole.tensors("run/step-00000012") == parts.tensors("run/step-00000012"));
    let single = Lab::new();
    single.train(2, &["train.max_steps=12"]).succeeded();
    assert!(whole.tensors("run/step-00000012") != single.tensors("run/step-00000012"), "the run did not use bf16");
}

#[test]
fn a_run_resumes_in_another_precision() {
    for (first, second) in [("fp32", "bf16"), ("bf16", "fp32")] {
        let lab = Lab::new();
        let precision = |name| format!("precision={name}");
        lab.train(0, &[&precision(first), "train.max_steps=3"]).succeeded();
        let resumed = lab.train(0, &[&precision(second), "train.max_steps=6"]).succeeded();
        assert!(resumed.stdout.contains("resuming from"), "{}", resumed.stdout);
        assert!(resumed.stdout.contains(&format!("precision {second}")), "{}", resumed.stdout);
        // All tensors are stored in float32, so that both precisions save the same number of bytes.
        let sizes = |step: &str| -> Vec<(String, usize)> {
            lab.tensors(step).into_iter().map(|(name, (_, bytes))| (name, bytes.len())).collect()
        };
        assert_eq!(sizes("run/step-00000003"), sizes("run/step-00000006"));
        let loss = lab.curve("logs", "train_loss");
        assert_eq!(loss.keys().copied().collect::<Vec<_>>(), (1..=6).collect::<Vec<_>>());
        assert!(loss.values().all(|loss| loss.is_finite()));
    }
}
