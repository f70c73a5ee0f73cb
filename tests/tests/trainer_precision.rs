//! `precision: bf16`: it learns as fp32 does, and a run may change from one to the other.
#![allow(clippy::unwrap_used)]

mod trainer_support;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use trainer_support::{Ended, Lab, launch, read_curve, trainer};

/// Steps of the demo over which the loss is compared.
const STEPS: usize = 200;
/// Steps whose losses are compared one by one. Differences grow in training, here tenfold in some 50 steps, and most where
/// gradients are large; after a while single batches tell nothing.
const SINGLE_STEPS: usize = 100;
/// An epoch of the demo: the losses of all samples, averaged.
const EPOCH: usize = 60;
/// Largest relative difference between losses.
const WITHIN: f32 = 0.01;

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

/// Starts the demo in one precision.
fn start_demo(folder: &Path, precision: &str) -> Child {
    let place = |name: &str| folder.join(name).display().to_string();
    let mut command = launch(0);
    command.arg(trainer()).arg("--config").arg(repository().join("configs/demo.yaml"));
    for value in [
        format!("data.url={}", place("dataset")),
        format!("run.dir={}", place(precision)),
        format!("run.log_dir={}", place(precision)),
        format!("precision={precision}"),
        format!("train.max_steps={STEPS}"),
        "train.threads=1".to_owned(),
        "train.device=cpu".to_owned(),
    ] {
        command.arg("--set").arg(value);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Means of the last epoch's losses, at every step.
fn smoothed(losses: &[f32]) -> Vec<f32> {
    let mean = |window: &[f32]| window.iter().sum::<f32>() / window.len() as f32;
    (1..=losses.len()).map(|end| mean(&losses[end.saturating_sub(EPOCH)..end])).collect()
}

/// The largest relative difference between two curves.
fn difference(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| (other - one).abs() / one.abs()).fold(0.0, f32::max)
}

#[test]
fn the_demo_learns_in_bf16_as_in_fp32() {
    let folder = tempfile::tempdir().unwrap();
    demo_dataset(folder.path());
    let runs = ["fp32", "bf16"].map(|precision| (precision, start_demo(folder.path(), precision)));
    let curves = runs.map(|(precision, child)| {
        let ended = Ended::of(child.wait_with_output().unwrap()).succeeded();
        assert!(ended.stdout.contains(&format!("precision {precision}")), "{}", ended.stdout);
        let curve = read_curve(&folder.path().join(precision), "train_loss");
        assert_eq!(curve.len(), STEPS);
        curve.into_values().collect::<Vec<f32>>()
    });
    let [single, half] = &curves;
    let same = single.iter().zip(half).filter(|(single, half)| single.to_bits() == half.to_bits()).count();
    assert!(same < STEPS / 10, "{same} losses are the same to the bit: this was not bf16");
    let each = difference(&single[..SINGLE_STEPS], &half[..SINGLE_STEPS]);
    let all = difference(single, half);
    let (single, half) = (smoothed(single), smoothed(half));
    let epochs = difference(&single, &half);
    println!(
        "largest relative difference: of the first {SINGLE_STEPS} steps {each:.5}, of all {all:.5}, of an epoch's mean {epochs:.5}"
    );
    // A curve that goes nowhere would be easy to follow.
    assert!(single[STEPS - 1] < 0.8 * single[0], "{single:?}");
    assert!(each < WITHIN && epochs < WITHIN, "{each} {epochs}\n{single:?}\n{half:?}");
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
