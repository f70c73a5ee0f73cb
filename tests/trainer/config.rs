//! Tests that configuration errors are reported in one line with exit code 78.
#![allow(clippy::unwrap_used)]

use arinar_protocol::exit_code::CONFIGURATION;
use arinar_tests::support::trainer::{Lab, ProcessOutput, launch, trainer};
use arinar_trainer::config;

/// Asserts exit code 78 and a one-line error with all of the parts.
fn assert_refused(output: &ProcessOutput, parts: &[&str]) {
    assert_eq!(output.code, Some(i32::from(CONFIGURATION)), "{}\n{}", output.stdout, output.stderr);
    for part in parts {
        assert!(output.error().contains(part), "{part:?} is not in {}", output.error());
    }
}

#[test]
fn a_misspelled_key_is_reported_with_its_location_and_a_suggestion() {
    let lab = Lab::new();
    let text = lab.config().replace("warmup_epochs", "warmup_epoch");
    std::fs::write(lab.path("tiny.yaml"), &text).unwrap();
    let (line, column) =
        text.lines().enumerate().find_map(|(line, text)| Some((line + 1, text.find("warmup_epoch")? + 1))).unwrap();
    let location = format!("tiny.yaml:{line}:{column}:");
    let parts = [location.as_str(), "\"warmup_epoch\"", "did you mean \"warmup_epochs\"?"];
    assert_refused(&lab.train(0, &[]), &parts);
    // One rank reports the error, and all exit with the code.
    assert_refused(&lab.train(2, &[]), &parts);
}

#[test]
fn overrides_are_checked_as_strictly_as_files() {
    let lab = Lab::new();
    for (argument, parts) in [
        ("optim.epoch=2", ["unknown key \"epoch\" in \"optim\"", "did you mean \"epochs\"?"]),
        ("optim=2", ["--set optim=2", "is not a mapping of keys to values"]),
        ("batch.global=many", ["--set batch.global=many", "batch.global: many is not a whole number from 1"]),
        ("batch.global", ["key=value", "--set batch.global"]),
        ("checkpoint.every=soon", ["45min", "100 steps"]),
        ("optim.ema=1.5", ["optim.ema: 1.5", "at least 0 and below 1"]),
        ("model.outer.heads=5", ["model.outer", "heads"]),
    ] {
        assert_refused(&lab.train(0, &[argument]), &parts);
    }
}

#[test]
fn a_batch_that_is_not_divisible_by_the_ranks_is_refused() {
    let lab = Lab::new();
    assert_refused(&lab.train(3, &[]), &["global batch 8 is not divisible by 3 ranks", "use 6 or 9"]);
}

#[test]
fn missing_files_are_named() {
    let lab = Lab::new();
    let nowhere = lab.path("nowhere").display().to_string();
    assert_refused(&lab.train(2, &[&format!("data.url={nowhere}")]), &[&nowhere]);
    let resume = format!("checkpoint.resume={nowhere}");
    assert_refused(&lab.train(0, &[&resume]), &["no checkpoint in", &nowhere]);
    let mut command = launch(0);
    command.arg(trainer()).args(["--config", "nowhere.yaml"]).current_dir(lab.folder.path());
    let output = ProcessOutput::of(command.output().unwrap());
    assert_refused(&output, &["no configuration \"nowhere.yaml\"", "configs/nowhere.yaml"]);
}

#[test]
fn a_model_that_does_not_match_the_dataset_is_refused() {
    let lab = Lab::new();
    assert_refused(&lab.train(0, &["model.vae.channels=8"]), &["model.vae.channels is 8", "encoded with 4"]);
    assert_refused(&lab.train(0, &["model.classes=7"]), &["model.classes is 7", "encoded with 3"]);
}

/// The run of the paper, from a bucket, with every section that a configuration may have.
const COMPLETE: &str = r#"
# mpirun -n 4 arinar-trainer --config arinar_b.yaml     4x A100-80G, about 8 days as published, FID 2.75
seed: 1
run: {name: arinar_b, dir: "s3://bucket/runs/arinar_b", log_dir: runs/arinar_b}
model:
  image_size: 256
  classes: 1000
  vae: {stride: 16, channels: 16, scale: 0.2325}
  outer: {kind: mar, width: 768, heads: 12, encoder_depth: 14, decoder_depth: 14, buffer_tokens: 64,
          mask_ratio_min: 0.7, dropout: 0.1, label_drop: 0.1}
  head: {kind: arinar, width: 768, depth: 1, heads: 4, gaussians: 4}
data: {url: "s3://bucket/in256-kl16", cache_dir: /local/cache, cache_limit: 60GB}
optim: {lr_per_256: 1.0e-4, betas: [0.9, 0.95], weight_decay: 0.02, grad_clip: 3.0, ema: 0.9999,
        schedule: constant, warmup_epochs: 100, epochs: 400}
batch: {global: 256}
precision: bf16
checkpoint: {every: 30min, keep_last: 3, keep_every_epochs: 40, resume: auto}
eval: {every_epochs: 40, num_images: 50000, guidance_scale: 4.5}
"#;

#[test]
fn a_complete_configuration_survives_a_round_trip() {
    let parsed = config::parse(COMPLETE, "design.yaml", &[]).unwrap();
    assert_eq!(parsed.model, arinar_model::config::ModelConfig::arinar_b());
    assert_eq!(parsed.learning_rate(50.0), 0.5e-4);
    assert_eq!(parsed.learning_rate(400.0), 1.0e-4);
    let json = serde_json::to_string(&parsed).unwrap();
    assert_eq!(serde_json::from_str::<config::TrainConfig>(&json).unwrap(), parsed);
}

#[test]
fn overrides_set_every_kind_of_value() {
    let overrides = [
        "optim.epochs=2",
        "optim.betas=[0.8, 0.9]",
        "checkpoint.every=100 steps",
        "data.url=synthetic:",
        "train.max_steps=3",
        "run.name=7",
        "data.cache_dir=null",
    ]
    .map(str::to_owned);
    let parsed = config::parse(COMPLETE, "design.yaml", &overrides).unwrap();
    assert_eq!(parsed.optim.epochs, 2.0);
    assert_eq!(parsed.optim.betas, [0.8, 0.9]);
    assert_eq!(parsed.checkpoint.every, config::Every::Steps(100));
    assert_eq!(parsed.data.url, "synthetic:");
    assert_eq!(parsed.train.max_steps, Some(3));
    assert_eq!(parsed.run.name, "7");
    assert_eq!(parsed.data.cache_dir, None);
}

#[test]
fn shares_cover_the_global_batch() {
    let parsed = config::parse(COMPLETE, "design.yaml", &["batch.global=250".to_owned()]).unwrap();
    let error = parsed.share_batch(8, 8).unwrap_err().to_string();
    assert!(error.contains("global batch 250 is not divisible by 8 ranks; use 248 or 256"), "{error}");
    let parsed = config::parse(COMPLETE, "design.yaml", &["batch.micro=48".to_owned()]).unwrap();
    let share = parsed.share_batch(4, 4).unwrap();
    assert_eq!((share.micro, share.accumulation), (32, 2));
}
