//! Tests that `--check` and the run agree: for every case, both succeed or both exit with code 78 and the same message.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::path::Path;

use arinar_tests::support::checkpoint::Cloud;
use arinar_tests::support::trainer::{Lab, ProcessOutput, launch, trainer};

/// The outcome that both must have.
enum Outcome<'a> {
    Success,
    /// A problem with this essential part of its message.
    Problem(&'a str),
}
use Outcome::{Problem, Success};

/// Runs `--check` and then the run, and asserts that both have the outcome.
fn assert_agreement(command: impl Fn() -> std::process::Command, case: &str, expected: &Outcome<'_>) {
    let check = ProcessOutput::of(command().arg("--check").output().unwrap());
    let run = ProcessOutput::of(command().output().unwrap());
    let shown = format!("{case}\n--check: {}\n{}\nrun: {}\n{}", check.stdout, check.stderr, run.stdout, run.stderr);
    match expected {
        Success => assert_eq!((check.code, run.code), (Some(0), Some(0)), "{shown}"),
        Problem(part) => {
            assert_eq!((check.code, run.code), (Some(78), Some(78)), "{shown}");
            let problems: Vec<_> = check.stdout.lines().filter(|line| line.starts_with("PROBLEM")).collect();
            assert!(problems.iter().any(|line| line.contains(part)), "{part:?} is not reported\n{shown}");
            assert!(run.error().contains(part), "{part:?} does not end the run\n{shown}");
        }
    }
}

/// A lab with files and links in the way of folders.
fn lab_with_obstacles() -> Lab {
    let lab = Lab::new();
    std::fs::write(lab.path("file"), "text").unwrap();
    symlink("nowhere", lab.path("dangling")).unwrap();
    symlink(lab.path("file"), lab.path("to-file")).unwrap();
    lab
}

#[test]
fn both_refuse_the_same_folders() {
    let lab = lab_with_obstacles();
    let path = |name: &str| lab.path(name).display().to_string();
    let problems = [
        ("file", "file is a file, not a folder; set KEY to a writable folder"),
        ("file/below", "file is a file, not a folder; set KEY to a writable folder"),
        ("to-file", "is a file, not a folder; set KEY to a writable folder"),
        ("dangling", "dangling is a link to nowhere, which does not exist; set KEY to a writable folder"),
        ("dangling/below", "dangling is a link to nowhere, which does not exist; set KEY to a writable folder"),
        ("/proc/nowhere", "cannot write to /proc"),
    ];
    for key in ["run.dir", "run.log_dir", "data.cache_dir"] {
        // Unit tests combine all obstacles with paths.
        let tried = if key == "run.dir" { &problems[..] } else { &problems[..1] };
        for &(name, part) in tried {
            let place = if name.starts_with('/') { name.to_owned() } else { path(name) };
            let part = part.replace("KEY", key);
            let value = format!("{key}={place}");
            assert_agreement(|| lab.command(0, &["train.max_steps=1", &value]), &value, &Problem(&part));
        }
    }
    // Links to folders, and folders that do not exist yet, are fine.
    std::fs::create_dir(lab.path("target")).unwrap();
    symlink(lab.path("target"), lab.path("link")).unwrap();
    let good = [format!("run.dir={}", path("link/new/run")), format!("run.log_dir={}", path("link/new/logs"))];
    let good: Vec<&str> = good.iter().map(String::as_str).chain(["train.max_steps=1"]).collect();
    assert_agreement(|| lab.command(2, &good), "links to folders", &Success);
}

#[test]
fn both_refuse_the_same_spool() {
    let cloud = Cloud::new();
    std::fs::write(cloud.lab.path("file"), "text").unwrap();
    let spool = format!("checkpoint.spool_dir={}", cloud.lab.path("file").display());
    let part = "file is a file, not a folder; set checkpoint.spool_dir to a writable folder";
    assert_agreement(|| cloud.command(0, &[&spool, "train.max_steps=1"]), &spool, &Problem(part));
    assert_agreement(|| cloud.command(2, &["train.max_steps=1"]), "a run in a bucket", &Success);
}

#[test]
fn both_refuse_the_same_configurations() {
    let lab = Lab::new();
    let cases: [(&[&str], Outcome<'_>); 16] = [
        (&["data.url=/nowhere"], Problem("there is no dataset at /nowhere")),
        (&["model.image_size=32"], Problem("model.image_size is 32 but the dataset")),
        (&["model.vae.scale=0.25"], Problem("model.vae.scale is 0.25 but the dataset")),
        (&["model.classes=2"], Problem("model.classes is 2 but the dataset")),
        (&["model.classes=7"], Problem("model.classes is 7 but the dataset")),
        (&["model.vae.stride=5"], Problem("model.image_size 16 is not divisible by model.vae.stride 5; use 15 or 20")),
        (&["model.outer.width=9223372036854775807"], Problem("is not a whole number from 1 to 65536")),
        (&["batch.global=18446744073709551615"], Problem("is not a whole number from 1 to 1000000000")),
        (&["train.max_steps=0"], Problem("train.max_steps: 0 is not a whole number of at least 1")),
        (&["optim.epochs=.inf"], Problem("optim.epochs: inf is not a finite number above 0")),
        (&["checkpoint.every=30M"], Problem("\"30M\" has the unit \"M\", which is none of ms, s, min, h and d")),
        (&["data.cache_limit=60G"], Problem("\"60G\" is not a size")),
        (&["checkpoint.resume=false"], Problem("\"false\" is none of its values")),
        (&["checkpoint.resume=/nowhere"], Problem("no checkpoint in /nowhere")),
        (&["run.dir="], Problem("run.dir has no value; it takes a path or store URL")),
        (&["run.log_dir=''"], Problem("run.log_dir: the text is empty; it takes the path of a local folder")),
    ];
    for (overrides, expected) in cases {
        assert_agreement(|| lab.command(0, overrides), &overrides.join(" "), &expected);
    }
    assert_agreement(|| lab.command(3, &[]), "3 ranks", &Problem("global batch 8 is not divisible by 3 ranks"));
}

#[test]
fn both_refuse_the_same_checkpoints_and_datasets() {
    let lab = Lab::new();
    assert_agreement(|| lab.command(0, &["train.max_steps=2"]), "a new run", &Success);
    let cases: [(&[&str], Outcome<'_>); 5] = [
        (&["train.max_steps=2"], Success),
        (&["seed=6"], Problem("seed is 5 in the checkpoint and 6 now")),
        (&["batch.global=4"], Problem("global batch is 8 in the checkpoint and 4 now")),
        (&["model.outer.width=64"], Problem("model.outer.width")),
        (&["checkpoint.resume=none"], Problem("already holds the checkpoint step-00000002")),
    ];
    for (overrides, expected) in cases {
        assert_agreement(|| lab.command(0, overrides), &overrides.join(" "), &expected);
    }
    // A synthetic dataset has a position, too.
    let noise = ["data.url=synthetic:48", "run.dir=NOISE"]
        .map(|value| value.replace("NOISE", lab.path("noise").to_str().unwrap()));
    let noise = |more: &[&str]| lab.command(0, &[&[noise[0].as_str(), &noise[1], "train.max_steps=2"], more].concat());
    assert_agreement(|| noise(&[]), "synthetic", &Success);
    for (overrides, part) in
        [(["seed=6"], "seed 5"), (["batch.global=4"], "global batch 8"), (["data.url=synthetic:40"], "synthetic:48")]
    {
        assert_agreement(|| noise(&overrides), overrides[0], &Problem(part));
    }
    // A cache that contains files of another program, and one that cannot hold the shards.
    let cache = format!("data.cache_dir={}", lab.path("dataset").display());
    assert_agreement(|| lab.command(0, &[&cache]), &cache, &Problem("cannot be the shard cache"));
    let cache = format!("data.cache_dir={}", lab.path("cache").display());
    assert_agreement(|| lab.command(0, &[&cache, "data.cache_limit=100"]), &cache, &Problem("data.cache_limit"));
    // A file of another program in the folder of the curves.
    std::fs::write(lab.path("logs/ledger.json"), "{\"accounts\": []}").unwrap();
    let part = "ledger.json exists and was not written by this program";
    assert_agreement(|| lab.command(0, &["train.max_steps=3"]), "ledger.json", &Problem(part));
    std::fs::remove_file(lab.path("logs/ledger.json")).unwrap();
    // Damage and gaps in the dataset. The smallest shard is the one that --check reads.
    std::fs::write(lab.path("dataset/manifest.json"), "{").unwrap();
    assert_agreement(|| lab.command(0, &[]), "manifest", &Problem("is not a valid manifest"));
}

#[test]
fn both_refuse_the_same_weights() {
    let lab = Lab::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pytorch");
    std::fs::write(lab.path("pointer"), "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n")
        .unwrap();
    let import = |file: &Path, overrides: &[&str]| {
        let mut command = lab.command(0, &[&["train.max_steps=1"], overrides].concat());
        command.arg("--import").arg(file);
        command
    };
    for (file, part) in [
        (lab.path("nowhere.pth"), "nowhere.pth"),
        (lab.path("pointer"), "it is a pointer of Git LFS, not the file itself; run `git lfs pull`"),
        (lab.path("dataset"), "it is not a regular file"),
        (fixtures.join("before-1.6.pth"), "it has the format of PyTorch before 1.6"),
        (fixtures.join("checkpoint-last.pth"), "do not match the model: wrong shape"),
    ] {
        assert_agreement(|| import(&file, &[]), &file.display().to_string(), &Problem(part));
    }
    let resume = format!("checkpoint.resume={}", lab.path("run").display());
    let file = fixtures.join("checkpoint-last.pth");
    assert_agreement(|| import(&file, &[&resume]), &resume, &Problem("two sources of initial weights"));
    // Weights of this model, before the run has started and afterwards.
    lab.train(0, &["train.max_steps=1"]).succeeded();
    let exported = lab.path("exported.safetensors");
    let mut export = launch(0);
    export.arg(trainer()).arg("--export").arg(&exported).arg("--run").arg(lab.path("run"));
    ProcessOutput::of(export.output().unwrap()).succeeded();
    let other = format!("run.dir={}", lab.path("other").display());
    assert_agreement(|| import(&exported, &[&other]), "an export", &Success);
    assert_agreement(|| import(&lab.path("nowhere.pth"), &[&other]), "a run that has started", &Success);
}
