//! `arinar-sample` on a run that the trainer made.
#![allow(clippy::unwrap_used)]

mod trainer_support;

use std::path::Path;
use std::process::Command;

use arinar_model::vae::{AutoencoderKl, VaeConfig, save_vae};
use tch::{Device, nn};
use trainer_support::{Ended, Lab, trainer};

/// A trained tiny run and a VAE of the right stride and channels, with random weights.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.train(0, &["train.max_steps=2"]).succeeded();
    tch::manual_seed(1);
    let config = VaeConfig { ch: 32, ch_mult: vec![1, 1, 1], num_res_blocks: 1, embed_dim: 4 };
    let store = nn::VarStore::new(Device::Cpu);
    let _vae = AutoencoderKl::new(&store.root(), &config);
    save_vae(&lab.path("vae.safetensors"), &store, &config, 0.5, &[]).unwrap();
    lab
}

fn sample(lab: &Lab, out: &str, arguments: &[&str]) -> Ended {
    sample_run(lab, lab.path("run").to_str().unwrap(), out, arguments)
}

fn sample_run(lab: &Lab, run: &str, out: &str, arguments: &[&str]) -> Ended {
    let mut command = Command::new(trainer().with_file_name("arinar-sample"));
    command.args(["--run", run, "--threads", "1"]).arg("--out").arg(lab.path(out));
    Ended::of(command.args(arguments).output().unwrap())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn pictures_and_a_grid_appear_and_a_seed_repeats_them() {
    let lab = lab();
    let vae = lab.path("vae.safetensors");
    let arguments = ["--vae", vae.to_str().unwrap(), "--classes", "two,0", "--per-class", "2", "--steps", "4"];
    let ended = sample(&lab, "one", &arguments).succeeded();
    assert!(ended.stdout.contains("EMA weights of step 2, 4 pictures of 2 classes"), "{}", ended.stdout);
    let expected = ["0000-one-000.png", "0000-one-001.png", "0001-two-000.png", "0001-two-001.png", "grid.png"];
    assert_eq!(names(&lab.path("one")), expected);
    let picture = image::open(lab.path("one/0001-two-000.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (16, 16));
    sample(&lab, "again", &arguments).succeeded();
    let other = [arguments.as_slice(), &["--seed", "2"]].concat();
    sample(&lab, "other", &other).succeeded();
    let grid = |folder: &str| std::fs::read(lab.path(folder).join("grid.png")).unwrap();
    assert_eq!(grid("one"), grid("again"));
    assert_ne!(grid("one"), grid("other"));
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let lab = lab();
    let vae = lab.path("vae.safetensors");
    let vae = vae.to_str().unwrap();
    for (arguments, code, parts) in [
        (vec!["--vae", vae, "--classes", "tow"], 78, vec!["--classes \"tow\"", "did you mean \"two\"?"]),
        (vec!["--vae", vae, "--temperature", "0"], 78, vec!["temperature"]),
        (vec!["--vae", vae, "--guidance-scale", "0.5"], 78, vec!["--guidance-scale 0.5"]),
        (vec![], 78, vec!["vae.safetensors", "--vae"]),
    ] {
        said_in_one_line(&sample(&lab, "out", &arguments), code, &parts);
        assert!(!lab.path("out").join("grid.png").exists());
    }
    said_in_one_line(&sample_run(&lab, "/nowhere", "out", &[]), 78, &["/nowhere", "no checkpoint"]);
}

fn said_in_one_line(ended: &Ended, code: i32, parts: &[&str]) {
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{}", ended.stderr);
    for part in parts {
        assert!(lines[0].contains(part), "{part:?} is not in {}", lines[0]);
    }
    assert_eq!(ended.code, Some(code), "{}", lines[0]);
}
