//! Tests that every program refuses an output that cannot be written with exit code 78, before it starts its work.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arinar_tests::support::data::{arinar_data, exit_status, picture_tree, succeeded, text, tiny_vae};
use arinar_tests::support::trainer::{Lab, trainer};

/// A lab with pictures, a VAE, a run, and files and links in the way of outputs.
struct Outputs {
    lab: Lab,
}

impl Outputs {
    fn new() -> Self {
        let lab = Lab::new();
        lab.train(0, &["train.max_steps=1"]).succeeded();
        picture_tree(&lab.path("pictures"), 12);
        tiny_vae(&lab.path("vae.safetensors"));
        std::fs::write(lab.path("file"), "text").unwrap();
        symlink("nowhere", lab.path("dangling")).unwrap();
        Self { lab }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.path(name)
    }

    fn encode(&self, vae: &Path, out: &Path) -> Output {
        let fixed =
            ["encode", "--images", text(&self.path("pictures")), "--image-size=8", "--threads=1"].map(str::to_owned);
        let more = ["--vae", text(vae), "--out", text(out)].map(str::to_owned);
        let all: Vec<_> = fixed.iter().chain(&more).map(String::as_str).collect();
        arinar_data(&all)
    }

    fn convert(&self, out: &Path) -> Output {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/npz/cached");
        arinar_data(&["convert", "--from", text(&from), "--out", text(out)])
    }

    fn train_vae(&self, out: &Path, more: &[&str]) -> Output {
        let sizes = ["--image-size", "8", "--multipliers", "1,1", "--steps", "1", "--batch", "2", "--held-out", "2"];
        let pictures = self.path("pictures");
        let fixed = ["train-vae", "--images", text(&pictures), "--out", text(out), "--threads", "1"];
        arinar_data(&[&fixed[..], &sizes, more].concat())
    }

    fn sample(&self, vae: &Path, out: &Path) -> Output {
        let run = self.path("run");
        let mut command = Command::new(trainer().with_file_name("arinar-sample"));
        command.args(["--run", text(&run), "--vae", text(vae), "--out", text(out), "--threads", "1"]).output().unwrap()
    }

    fn export(&self, file: &Path) -> Output {
        let run = self.path("run");
        let arguments = ["--export", text(file), "--run", text(&run)];
        Command::new(trainer()).args(arguments).output().unwrap()
    }
}

/// Asserts exit code 78 and one line of error with all of the parts.
fn assert_refused(output: &Output, parts: &[&str]) {
    let (code, stdout, stderr) = exit_status(output);
    assert_eq!(code, 78, "{stdout}\n{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in {stderr}");
    }
}

#[test]
fn outputs_that_cannot_be_written_are_refused() {
    let outputs = Outputs::new();
    let (vae, sampling_vae) = (outputs.path("vae.safetensors"), outputs.path("sampling.safetensors"));
    {
        use arinar_model::vae::{AutoencoderKl, VaeConfig, save_vae};
        let config = VaeConfig { ch: 32, ch_mult: vec![1, 1, 1], num_res_blocks: 1, embed_dim: 4 };
        let store = tch::nn::VarStore::new(tch::Device::Cpu);
        let _vae = AutoencoderKl::new(&store.root(), &config);
        save_vae(&sampling_vae, &store, &config, 0.5, &[]).unwrap();
    }
    let problems = [
        ("file", "file is a file, not a folder"),
        ("file/below", "file is a file, not a folder"),
        ("dangling", "dangling is a link to nowhere, which does not exist"),
        ("/proc/nowhere", "cannot write to /proc"),
    ];
    for (name, problem) in problems {
        let out = outputs.lab.folder.path().join(name);
        let parts = ["--out", text(&out), problem, "choose another --out"];
        assert_refused(&outputs.encode(&vae, &out), &parts);
        assert_refused(&outputs.convert(&out), &parts);
        assert_refused(&outputs.sample(&sampling_vae, &out), &parts);
        if name != "dangling" {
            let below = out.join("weights.safetensors");
            assert_refused(&outputs.export(&below), &["--export", problem, "choose another file"]);
        }
    }
    let folder = outputs.path("pictures");
    assert_refused(&outputs.export(&folder), &["--export", "it is a folder", "choose another file"]);
    for out in ["pictures", "file/below", "nowhere/below", "dangling/below"] {
        assert_refused(&outputs.train_vae(&outputs.path(out), &[]), &["--out", out, "choose another --out"]);
    }
    assert_refused(&outputs.train_vae(&outputs.path("file"), &[]), &["file exists and is not a VAE"]);
}

#[test]
fn options_of_train_vae_that_are_out_of_range_are_refused() {
    let outputs = Outputs::new();
    let out = outputs.path("new.safetensors");
    for (more, part) in [
        (["--image-size", "7"], "--image-size 7 is not a multiple of the stride 2"),
        (["--image-size", "0"], "--image-size 0 is not a multiple"),
        (["--channels", "33"], "is not a multiple of 32"),
        (["--steps", "0"], "must be at least 1"),
        (["--threads", "0"], "must be at least 1"),
        (["--learning-rate", "nan"], "--learning-rate NaN is not a finite number above 0"),
        (["--kl-weight", "inf"], "--kl-weight inf is not a finite number"),
        (["--held-out", "0"], "give more pictures or a smaller --held-out"),
        (["--held-out", "18446744073709551615"], "give more pictures or a smaller --held-out"),
        (["--images", "/nowhere"], "/nowhere"),
    ] {
        // A later option of clap does not replace an earlier one.
        let pictures = outputs.path("pictures");
        let mut arguments = vec![
            "train-vae",
            "--images",
            text(&pictures),
            "--out",
            text(&out),
            "--image-size",
            "8",
            "--multipliers",
            "1,1",
            "--steps",
            "1",
            "--batch",
            "2",
            "--held-out",
            "2",
            "--threads",
            "1",
        ];
        match arguments.iter().position(|argument| *argument == more[0]) {
            Some(at) => arguments[at + 1] = more[1],
            None => arguments.extend(more),
        }
        assert_refused(&arinar_data(&arguments), &[part]);
        assert!(!out.exists());
    }
}

#[test]
fn weights_of_other_kinds_are_named_by_every_program() {
    let outputs = Outputs::new();
    let write = |name: &str, contents: &[u8]| {
        std::fs::write(outputs.path(name), contents).unwrap();
        outputs.path(name)
    };
    let valid = std::fs::read(outputs.path("vae.safetensors")).unwrap();
    let import = |file: &Path| {
        outputs
            .lab
            .command(0, &[&format!("run.dir={}", outputs.path("other").display())])
            .arg("--import")
            .arg(file)
            .output()
            .unwrap()
    };
    let pointer = write("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n");
    let page = write("page.safetensors", b"<!DOCTYPE html>\n<html><title>Sign in</title></html>\n");
    let truncated = write("truncated.safetensors", &valid[..valid.len() / 2]);
    let cases = [
        (pointer.as_path(), "it is a pointer of Git LFS, not the file itself; run `git lfs pull`"),
        (
            &page,
            "it is an HTML or XML page, such as an error or sign-in page instead of the download; download the file again",
        ),
        (&truncated, "not a complete safetensors file (it has "),
        (&outputs.path("pictures"), "it is not a regular file; give the path of"),
        (&write("empty", b""), "it is empty; download the file again"),
        (&write("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03"), "it is compressed with gzip; decompress it first"),
        (&write("index.json", b"{\"weight_map\": {}}"), "the index of weights in several files"),
    ];
    for (file, part) in cases {
        assert_refused(&import(file), &[part, text(file)]);
        assert_refused(&outputs.encode(file, &outputs.path("out")), &[part, text(file)]);
        assert_refused(&outputs.sample(file, &outputs.path("out")), &[part, text(file)]);
    }
    succeeded(&outputs.encode(&outputs.path("vae.safetensors"), &outputs.path("out")));
}
