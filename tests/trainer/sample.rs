//! Tests of `arinar-sample` on a run of the trainer.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use arinar_model::vae::{AutoencoderKl, VaeConfig, load_vae, save_vae};
use arinar_model::{Arinar, weights};
use arinar_tests::reference::sampling::{self, Options};
use arinar_tests::support::trainer::{Lab, ProcessOutput, trainer};
use tch::{Device, Kind, Tensor, nn};

/// Creates a tiny run whose averages differ clearly from its weights, and a matching VAE with random weights.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.train(0, &["train.max_steps=12", "optim.warmup_epochs=0"]).succeeded();
    let _generator = arinar_tests::reference::generator();
    tch::manual_seed(1);
    let config = VaeConfig { ch: 32, ch_mult: vec![1, 1, 1], num_res_blocks: 1, embed_dim: 4 };
    let store = nn::VarStore::new(Device::Cpu);
    let _vae = AutoencoderKl::new(&store.root(), &config);
    save_vae(&lab.path("vae.safetensors"), &store, &config, 0.5, &[]).unwrap();
    lab
}

fn sample(lab: &Lab, out: &str, arguments: &[&str]) -> ProcessOutput {
    sample_run(lab, lab.path("run").to_str().unwrap(), out, arguments)
}

fn sample_run(lab: &Lab, run: &str, out: &str, arguments: &[&str]) -> ProcessOutput {
    let mut command = Command::new(trainer().with_file_name("arinar-sample"));
    command.args(["--run", run, "--threads", "1"]).arg("--out").arg(lab.path(out));
    ProcessOutput::of(command.args(arguments).output().unwrap())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn images_and_a_grid_are_written_and_a_seed_repeats_them() {
    let lab = lab();
    let vae = lab.path("vae.safetensors");
    let arguments = ["--vae", vae.to_str().unwrap(), "--classes", "two,0", "--per-class", "2", "--steps", "4"];
    let output = sample(&lab, "one", &arguments).succeeded();
    assert!(output.stdout.contains("EMA weights of step 12, 4 images of 2 classes"), "{}", output.stdout);
    let expected = ["0000-one-000.png", "0000-one-001.png", "0001-two-000.png", "0001-two-001.png", "grid.png"];
    assert_eq!(names(&lab.path("one")), expected);
    let image = image::open(lab.path("one/0001-two-000.png")).unwrap();
    assert_eq!((image.width(), image.height()), (16, 16));
    sample(&lab, "again", &arguments).succeeded();
    let other = [arguments.as_slice(), &["--seed", "2"]].concat();
    sample(&lab, "other", &other).succeeded();
    let grid = |folder: &str| std::fs::read(lab.path(folder).join("grid.png")).unwrap();
    assert_eq!(grid("one"), grid("again"));
    assert_ne!(grid("one"), grid("other"));
}

/// Returns the run's model with the tensors of one kind of file.
fn model(lab: &Lab, kind: &str) -> (nn::VarStore, Arinar) {
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(lab.path("run/step-00000012/state.json")).unwrap()).unwrap();
    let config = serde_json::from_value(state["config"]["model"].clone()).unwrap();
    let store = nn::VarStore::new(Device::Cpu);
    let model = Arinar::new(&store.root(), &config);
    let tensors = lab.tensors("run/step-00000012");
    for (name, variable) in weights::named(&store) {
        let (_, bytes) = &tensors[&format!("{kind}/{name}")];
        let saved = Tensor::from_data_size(bytes, &variable.size(), Kind::Float);
        tch::no_grad(|| variable.shallow_clone().copy_(&saved));
    }
    (store, model)
}

/// Returns the reference's images of classes 1 and 0, two of each, in this order: [4, H, W, 3].
fn reference(lab: &Lab, kind: &str, batch: usize, options: Options) -> Tensor {
    let (_store, model) = model(lab, kind);
    let vae = load_vae(&lab.path("vae.safetensors"), Device::Cpu).unwrap();
    let batches = [1, 1, 0, 0].chunks(batch).zip(options.seed..).map(|(labels, seed)| {
        let latents = sampling::latents(&model, labels, &Options { seed, ..options });
        sampling::pixels(&vae.vae, &latents, 0.5)
    });
    tch::no_grad(|| Tensor::cat(&batches.collect::<Vec<_>>(), 0))
}

/// Returns the same images as written by the program.
fn written(lab: &Lab, out: &str) -> Tensor {
    let names = ["0001-two-000.png", "0001-two-001.png", "0000-one-000.png", "0000-one-001.png"];
    let images = names.map(|name| {
        let image = image::open(lab.path(out).join(name)).unwrap().into_rgb8();
        Tensor::from_slice(image.as_raw()).view([16, 16, 3]).to_kind(Kind::Double)
    });
    Tensor::stack(&images, 0)
}

/// Returns the largest difference between two sets of images, in levels.
fn max_difference(one: &Tensor, other: &Tensor) -> f64 {
    (one - other).abs().max().double_value(&[])
}

#[test]
fn images_match_the_reference() {
    let lab = lab();
    tch::set_num_threads(1);
    // The guidance is strong enough for the class to matter, although the model has hardly learned it.
    let guided = Options { steps: 5, scale: 30.0, linear: true, temperature: 1.0, seed: 7 };
    let cases = [
        (guided, 4),
        (guided, 3),
        (guided, 1),
        (Options { linear: false, ..guided }, 4),
        (Options { temperature: 1.7, ..guided }, 4),
        (Options { scale: 1.0, ..guided }, 4),
        (Options { steps: 16, ..guided }, 4),
        (Options { seed: 8, ..guided }, 4),
    ];
    let mut all = Vec::new();
    for (index, (options, batch)) in cases.into_iter().enumerate() {
        let out = format!("case{index}");
        let schedule = if options.linear { "linear" } else { "constant" };
        let vae = lab.path("vae.safetensors").display().to_string();
        let values = [
            ("--vae", vae),
            ("--classes", "two,one".to_owned()),
            ("--per-class", "2".to_owned()),
            ("--batch", batch.to_string()),
            ("--steps", options.steps.to_string()),
            ("--guidance-scale", options.scale.to_string()),
            ("--guidance-schedule", schedule.to_owned()),
            ("--temperature", options.temperature.to_string()),
            ("--seed", options.seed.to_string()),
            ("--device", "cpu".to_owned()),
        ];
        let arguments: Vec<&str> = values.iter().flat_map(|(option, value)| [*option, value.as_str()]).collect();
        sample(&lab, &out, &arguments).succeeded();
        let (found, expected) = (written(&lab, &out), reference(&lab, "ema", batch, options));
        // Half a level of rounding, plus the rounding errors of float32.
        let difference = max_difference(&found, &expected);
        assert!(difference < 0.51, "{options:?}, batches of {batch}: {difference} levels");
        all.push(found);
    }
    // The images of a batch, all settings, and averages and weights differ clearly, so that a mix-up is detected.
    for (index, images) in all.iter().enumerate() {
        for (one, other) in [(0, 1), (0, 2), (2, 3)] {
            let difference = max_difference(&images.get(one), &images.get(other));
            assert!(difference > 5.0, "case {index}: images {one} and {other} are only {difference} levels apart");
        }
        assert!(all[..index].iter().all(|earlier| max_difference(earlier, images) > 5.0), "case {index}");
    }
    assert!(max_difference(&all[0], &reference(&lab, "model", 4, guided)) > 5.0, "averages and weights are alike");
}

#[test]
fn errors_are_reported_in_one_line() {
    let lab = lab();
    let vae = lab.path("vae.safetensors");
    let vae = vae.to_str().unwrap();
    for (arguments, code, parts) in [
        (vec!["--vae", vae, "--classes", "tow"], 78, vec!["--classes \"tow\"", "did you mean \"two\"?"]),
        (vec!["--vae", vae, "--temperature", "0"], 78, vec!["temperature"]),
        (vec!["--vae", vae, "--guidance-scale", "0.5"], 78, vec!["--guidance-scale 0.5"]),
        (vec![], 78, vec!["vae.safetensors", "--vae"]),
    ] {
        assert_one_line(&sample(&lab, "out", &arguments), code, &parts);
        assert!(!lab.path("out").join("grid.png").exists());
    }
    assert_one_line(&sample_run(&lab, "/nowhere", "out", &[]), 78, &["/nowhere", "no checkpoint"]);
}

fn assert_one_line(output: &ProcessOutput, code: i32, parts: &[&str]) {
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{}", output.stderr);
    for part in parts {
        assert!(lines[0].contains(part), "{part:?} is not in {}", lines[0]);
    }
    assert_eq!(output.code, Some(code), "{}", lines[0]);
}
