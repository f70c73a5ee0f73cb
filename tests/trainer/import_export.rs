//! Tests that import official PyTorch files and export safetensors. tests/fixtures/pytorch/make.py created the
//! fixtures.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use arinar_model::Arinar;
use arinar_model::config::ModelConfig;
use arinar_model::vae::{load_vae, load_vae_bytes, vae_safetensors};
use arinar_model::weights::{self, WeightsError, WeightsFile};
use arinar_protocol::exit_code;
use arinar_tests::support::trainer::{ProcessOutput, launch, trainer};
use tch::{Device, Kind, Tensor, nn};

/// Offset of the averages in the formula for the fixture's values.
const EMA_OFFSET: i64 = 500;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pytorch").join(name)
}

/// Returns element `element` of tensor number `index` of a fixture.
fn value(index: usize, element: usize, shift: i64) -> f64 {
    ((7919 * index as i64 + 104_729 * element as i64 + shift) % 1009) as f64 / 1009.0 - 0.5
}

fn values(index: usize, shape: &[i64], shift: i64) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    let numbers: Vec<f64> = (0..count).map(|element| value(index, element, shift)).collect();
    Tensor::from_slice(&numbers).view(shape).to_kind(Kind::Float)
}

fn zeros(shapes: &[(&str, &[i64])]) -> BTreeMap<String, Tensor> {
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    shapes.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))).collect()
}

/// The model of checkpoint-last.pth.
const MODEL: &str = r#"{"image_size": 8, "classes": 3, "vae": {"stride": 2, "channels": 4, "scale": 0.5},
 "outer": {"kind": "mar", "width": 8, "heads": 2, "encoder_depth": 1, "decoder_depth": 1, "buffer_tokens": 2,
           "mask_ratio_min": 0.7, "dropout": 0.1, "label_drop": 0.1},
 "head": {"kind": "arinar", "width": 8, "depth": 1, "heads": 4, "gaussians": 2}}"#;

fn tiny_model() -> nn::VarStore {
    let config: ModelConfig = serde_json::from_str(MODEL).unwrap();
    let store = nn::VarStore::new(Device::Cpu);
    Arinar::new(&store.root(), &config);
    store
}

/// Asserts that every tensor has the fixture's values and that the only buffer is zero.
fn assert_official(tensors: &BTreeMap<String, Tensor>, shift: i64, tolerance: f64) {
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        let expected = match name.ends_with("zero_k_bias") {
            true => tensor.zeros_like(),
            false => values(index, &tensor.size(), shift),
        };
        let difference = (tensor - expected).abs().max().double_value(&[]);
        assert!(difference <= tolerance, "{name} is off by {difference}");
    }
}

#[test]
fn the_official_checkpoint_is_read_exactly() {
    let file = WeightsFile::open(&fixture("checkpoint-last.pth")).unwrap();
    let model = weights::named(&tiny_model());
    file.fill_model(&model).unwrap();
    assert_official(&model, 0, 0.0);
    assert!(file.fill_ema(&model).unwrap());
    assert_official(&model, EMA_OFFSET, 0.0);
}

#[test]
fn every_float_type_and_view_is_read_correctly() {
    let shapes: [(&str, &[i64]); 9] = [
        ("bf16", &[3, 2]),
        ("columns", &[6, 2]),
        ("f16", &[3, 2]),
        ("f32", &[3, 2]),
        ("f64", &[3, 2]),
        ("parameter", &[3, 2]),
        ("rows", &[2, 4]),
        ("scalar", &[]),
        ("transposed", &[3, 2]),
    ];
    let loaded = zeros(&shapes);
    let file = WeightsFile::open(&fixture("dtypes.pth")).unwrap();
    file.fill_model(&loaded).unwrap();
    assert!(!file.fill_ema(&loaded).unwrap());
    let base = values(100, &[6, 4], 0);
    let rounded = |index, kind| values(index, &[3, 2], 0).to_kind(kind).to_kind(Kind::Float);
    assert_eq!(loaded["f32"], values(0, &[3, 2], 0));
    assert_eq!(loaded["f16"], rounded(1, Kind::Half));
    assert_eq!(loaded["bf16"], rounded(2, Kind::BFloat16));
    assert_eq!(loaded["f64"], values(3, &[3, 2], 0));
    assert_eq!(loaded["scalar"], values(4, &[], 0));
    assert_eq!(loaded["transposed"], values(5, &[2, 3], 0).tr());
    assert_eq!(loaded["parameter"], values(6, &[3, 2], 0));
    assert_eq!(loaded["rows"], base.narrow(0, 2, 2));
    assert_eq!(loaded["columns"], base.slice(1, 1, 4, 2));
}

#[test]
fn the_official_vae_is_read_and_converted_deterministically() {
    let path = fixture("kl16.ckpt");
    let vae = load_vae(&path, Device::Cpu).unwrap();
    let tensors = weights::named(&vae.store);
    assert_eq!(tensors.values().map(Tensor::numel).sum::<usize>(), 66_456_019);
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        let expected = ((37 * index as i64 % 313 - 156) as f64 / 10_000.0) as f32;
        let (least, most) = (tensor.min().double_value(&[]), tensor.max().double_value(&[]));
        assert!(least == f64::from(expected) && most == least, "{name}: {least} to {most}, not {expected}");
    }
    // The form in which a dataset stores the VAE.
    let converted = vae_safetensors(&path).unwrap();
    let reloaded = load_vae_bytes(Path::new("vae.safetensors"), &converted, Device::Cpu).unwrap();
    assert_eq!((reloaded.xxh3, reloaded.scale, reloaded.config), (vae.xxh3, vae.scale, vae.config));
}

#[test]
fn encode_stores_the_official_vae_with_the_dataset() {
    let folder = tempfile::tempdir().unwrap();
    arinar_tests::support::data::picture_tree(&folder.path().join("pictures"), 2);
    let (images, out, vae) = (folder.path().join("pictures"), folder.path().join("out"), fixture("kl16.ckpt"));
    let text = arinar_tests::support::data::text;
    let arguments =
        ["encode", "--images", text(&images), "--vae", text(&vae), "--out", text(&out), "--image-size", "16"];
    arinar_tests::support::data::succeeded(&arinar_tests::support::data::arinar_data(&arguments));
    let dataset = arinar_data::read::Dataset::open(text(&out)).unwrap();
    let kept = dataset.vae(Device::Cpu).unwrap();
    assert_eq!(kept.xxh3, load_vae(&vae, Device::Cpu).unwrap().xxh3);
}

/// Asserts that the message is a single line with all of the parts.
fn assert_one_line(error: &WeightsError, parts: &[&str]) {
    let message = error.to_string();
    assert!(!message.contains('\n') && message.len() < 700, "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
}

#[test]
fn malicious_files_run_no_commands() {
    let weight = zeros(&[("weight", &[3, 2])]);
    let open = |name: &str| WeightsFile::open(&fixture(name));
    // Like the arguments of the official training, an attack next to valid weights is ignored.
    open("attack-beside.pth").unwrap().fill_model(&weight).unwrap();
    assert_eq!(weight["weight"], values(0, &[3, 2], 0));
    assert_one_line(&open("attack-whole.pth").unwrap_err(), &["attack-whole.pth", "system"]);
    assert_one_line(&open("attack-bare.pkl").unwrap_err(), &["attack-bare.pkl", "PyTorch before 1.6"]);
    assert_one_line(&open("before-1.6.pth").unwrap_err(), &["torch.save", "1.6 or newer"]);
    assert!(!Path::new("/tmp/arinar-unpickled-a-command").exists());
}

#[test]
fn mismatched_tensors_and_files_are_named() {
    let file = WeightsFile::open(&fixture("dtypes.pth")).unwrap();
    let model = zeros(&[("f32", &[2, 3]), ("absent", &[1])]);
    let error = file.fill_model(&model).unwrap_err();
    assert_one_line(&error, &["f32 is [3, 2] where the model has [2, 3]", "missing: absent", "unexpected: bf16"]);
    let error = WeightsFile::open(&fixture("integers.pth")).unwrap();
    assert_one_line(&error.fill_model(&zeros(&[("weight", &[4])])).unwrap_err(), &["tensor weight is stored as I64"]);
    assert_one_line(&load_vae(&fixture("checkpoint-last.pth"), Device::Cpu).err().unwrap(), &["missing: decoder"]);
    assert_one_line(&WeightsFile::open(Path::new("/nowhere.pth")).unwrap_err(), &["/nowhere.pth"]);
}

/// Saves the fixture's weights with other names. A name that is replaced by several is saved under each of them.
fn save_renamed(path: &Path, rename: impl Fn(&str) -> Vec<String>) {
    let model = weights::named(&tiny_model());
    WeightsFile::open(&fixture("checkpoint-last.pth")).unwrap().fill_model(&model).unwrap();
    let renamed = |(name, tensor): (&String, &Tensor)| {
        rename(name).into_iter().map(|name| (name, tensor.shallow_clone())).collect::<Vec<_>>()
    };
    weights::save(path, &model.iter().flat_map(renamed).collect(), &BTreeMap::new()).unwrap();
}

#[test]
fn names_of_wrapped_models_are_accepted_but_never_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrapped.safetensors");
    let load = || {
        let model = weights::named(&tiny_model());
        WeightsFile::open(&path).and_then(|file| file.fill_model(&model)).map(|()| model)
    };
    // The names of DistributedDataParallel, torch.compile, both, PyTorch Lightning, FullyShardedDataParallel, and the
    // PyTorch tutorial on checkpoints.
    let prefixes = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "state_dict.model.", "model."];
    for prefix in prefixes.into_iter().chain(["_fsdp_wrapped_module.", "model_state_dict.module.", "state_dict."]) {
        save_renamed(&path, |name| vec![format!("{prefix}{name}")]);
        assert_official(&load().unwrap_or_else(|error| panic!("{prefix}: {error}")), 0, 0.0);
    }
    // Only the head is compiled.
    save_renamed(&path, |name| vec![name.replace("arhead.", "arhead._orig_mod.")]);
    assert_official(&load().unwrap(), 0, 0.0);
    let refused = |rename: fn(&str) -> Vec<String>| {
        save_renamed(&path, rename);
        assert_one_line(&load().unwrap_err(), &["hold more than one set of tensors", "save one of them"]);
    };
    refused(|name| vec![name.to_owned(), format!("module.{name}")]);
    refused(|name| vec![format!("model.{name}"), format!("state_dict.{name}")]);
    refused(|name| vec![format!("{}.{name}", if name.len() % 2 == 0 { "model" } else { "module" })]);
    refused(|name| vec![name.to_owned(), name.replace("arhead.", "arhead._orig_mod.")]);
    let lab = Lab::new();
    save_renamed(&path, |name| vec![format!("module._orig_mod.{name}")]);
    lab.import(2, &path.display().to_string(), &[]).succeeded();
    assert_official(&lab.export("model", "run"), 0, 1e-20);
}

#[test]
fn archives_and_damaged_downloads_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let archive = |name: &str, files: &[&str]| {
        let path = folder.path().join(name);
        let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        for file in files {
            archive.start_file(*file, zip::write::SimpleFileOptions::default()).unwrap();
        }
        archive.finish().unwrap();
        path
    };
    let official = std::fs::read(fixture("checkpoint-last.pth")).unwrap();
    let cut = folder.path().join("cut.pth");
    std::fs::write(&cut, &official[..official.len() / 2]).unwrap();
    let saved = folder.path().join("saved.safetensors");
    weights::save(&saved, &weights::named(&tiny_model()), &BTreeMap::new()).unwrap();
    let saved = std::fs::read(saved).unwrap();
    let part = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    for (path, expected) in [
        (
            archive("photos.zip", &["a.jpg"]),
            "photos.zip is not a weights file: it is a zip archive of other files; unpack it",
        ),
        (archive("cached.npz", &["moments.npy"]), "it is a NumPy archive"),
        (archive("program.pt", &["program/data.pkl", "program/constants.pkl"]), "it is a TorchScript program"),
        (cut, "cut.pth: not a complete torch.save file (its end is missing"),
        (part("header.safetensors", &saved[..20]), "not a complete safetensors file (it has 20 of at least"),
        (part("values.safetensors", &saved[..saved.len() - 1]), "not a complete safetensors file (it has"),
        (part("longer.safetensors", &[&saved[..], b"more"].concat()), "bytes instead of"),
        (part("zeros", &[0; 4096]), "it is filled with zeros; download the file again"),
        (part("noise", &[0x9c; 4096]), "not a complete safetensors file"),
        (folder.path().to_owned(), "it is not a regular file"),
    ] {
        let model = weights::named(&tiny_model());
        let result = WeightsFile::open(&path).and_then(|file| file.fill_model(&model));
        assert_one_line(&result.unwrap_err(), &[expected]);
        assert_one_line(&load_vae(&path, Device::Cpu).err().unwrap(), &[expected]);
    }
}

/// A folder in which the fixture's model is trained on noise.
struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap() };
        let path = |name| lab.path(name);
        // The rates are too small to change the imported weights before the run saves them.
        let config = format!(
            "seed: 5\nrun: {{name: tiny, dir: {}, log_dir: {}}}\nmodel: {MODEL}\ndata: {{url: 'synthetic:24'}}\n\
             optim: {{lr_per_256: 1.0e-30, betas: [0.9, 0.95], weight_decay: 0.0, grad_clip: 3.0, \
             ema: 0.9999999999999999, \
             schedule: constant, warmup_epochs: 0, epochs: 40}}\nbatch: {{global: 4}}\n\
             train: {{max_steps: 1, threads: 1}}\n",
            path("run"),
            path("logs")
        );
        std::fs::write(lab.path("tiny.yaml"), config).unwrap();
        lab
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Runs the trainer with the arguments.
    fn trainer(&self, ranks: usize, arguments: &[&str]) -> ProcessOutput {
        let mut command: Command = launch(ranks);
        ProcessOutput::of(command.arg(trainer()).args(arguments).output().unwrap())
    }

    fn import(&self, ranks: usize, file: &str, more: &[&str]) -> ProcessOutput {
        self.trainer(ranks, &[&["--config", &self.path("tiny.yaml"), "--import", file], more].concat())
    }

    /// Exports the run to a file and reads it back.
    fn export(&self, weights: &str, run: &str) -> BTreeMap<String, Tensor> {
        let (file, run) = (self.path(&format!("{weights}.safetensors")), self.path(run));
        let output = self.trainer(0, &["--export", &file, "--run", &run, "--weights", weights]).succeeded();
        assert!(output.stdout.contains("62 tensors"), "{}", output.stdout);
        let tensors = weights::named(&tiny_model());
        weights::load(Path::new(&file), &tensors).unwrap();
        tensors
    }
}

/// Asserts exit code 78 and a one-line error with all of the parts.
fn assert_refused(output: &ProcessOutput, parts: &[&str]) {
    assert_eq!(output.code, Some(i32::from(exit_code::CONFIGURATION)), "{}\n{}", output.stdout, output.stderr);
    for part in parts {
        assert!(output.error().contains(part), "{part:?} is not in {}", output.error());
    }
}

#[test]
fn a_run_starts_from_the_official_weights_resumes_and_is_exported() {
    let lab = Lab::new();
    let official = fixture("checkpoint-last.pth").display().to_string();
    let started = lab.import(2, &official, &[]).succeeded();
    assert!(started.stdout.contains("model and model_ema"), "{}", started.stdout);
    assert_official(&lab.export("model", "run"), 0, 1e-20);
    assert_official(&lab.export("ema", "run"), EMA_OFFSET, 1e-6);
    // The same command line, as a queue would repeat it, resumes the run.
    let resumed = lab.import(2, &official, &["--set", "train.max_steps=2"]).succeeded();
    assert!(resumed.stdout.contains("resuming from") && resumed.stdout.contains("is not read"), "{}", resumed.stdout);
    let steps = std::fs::read_dir(lab.path("run")).unwrap().count();
    assert_eq!(steps, 2);
    let refuse = lab.import(0, &official, &["--set", "checkpoint.resume=none"]);
    assert_refused(&refuse, &["already holds the checkpoint step-00000002"]);
    let both = lab.import(0, &official, &["--set", &format!("checkpoint.resume={}", lab.path("run"))]);
    assert_refused(&both, &["--import", "checkpoint.resume"]);
    // Export an earlier step and import it into a new run.
    let first = lab.path("first.safetensors");
    let arguments = ["--export", &first, "--run", &lab.path("run"), "--step", "1", "--weights", "model"];
    lab.trainer(0, &arguments).succeeded();
    let run = format!("run.dir={}", lab.path("second"));
    let started = lab.import(0, &first, &["--set", &run]).succeeded();
    assert!(started.stdout.contains("averages start from the same weights"), "{}", started.stdout);
    for kind in ["model", "ema"] {
        assert_official(&lab.export(kind, "second"), 0, 1e-20);
    }
}

#[test]
fn wrong_command_lines_are_refused_in_one_line() {
    let lab = Lab::new();
    assert_refused(&lab.import(2, "/nowhere/checkpoint-last.pth", &[]), &["/nowhere/checkpoint-last.pth"]);
    let vae = fixture("kl16.ckpt").display().to_string();
    assert_refused(&lab.import(2, &vae, &[]), &["kl16.ckpt", "missing: arhead", "unexpected: decoder"]);
    let nowhere = lab.trainer(0, &["--export", &lab.path("x"), "--run", &lab.path("nowhere")]);
    assert_refused(&nowhere, &["no checkpoint in"]);
    let usage = |arguments: &[&str], part: &str| {
        let output = lab.trainer(0, arguments);
        assert!(output.code == Some(78) && output.stderr.contains(part), "{}", output.stderr);
    };
    usage(&["--export", "x"], "--run");
    usage(&["--export", "x", "--run", "y", "--config", "z"], "--config");
    usage(&[], "--config");
    usage(&["--config", "x", "--step", "3"], "--export");
}
