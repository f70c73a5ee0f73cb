//! Tests on file systems without file locks and in stores without conditional puts: nothing starts unnoticed that could
//! have two writers, and the error names the fix.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use arinar_tests::programs::program;
use arinar_tests::s3::{Conditions, Faults};
use arinar_tests::support::checkpoint::Cloud;
use arinar_tests::support::data::{exit_status, picture_tree, text, tiny_vae};
use arinar_tests::support::no_locks::{ERRORS, NoLocks};
use arinar_tests::support::trainer::{Lab, ProcessOutput};

/// Asserts that a command and the same with `--check` end with 78 and report all parts in one line.
fn assert_refused(mut command: impl FnMut() -> Command, parts: &[&str]) {
    let run = ProcessOutput::of(command().output().unwrap());
    assert_eq!(run.code, Some(78), "{}\n{}", run.stdout, run.stderr);
    let check = ProcessOutput::of(command().arg("--check").output().unwrap());
    assert_eq!(check.code, Some(78), "{}\n{}", check.stdout, check.stderr);
    let problems: Vec<&str> = check.stdout.lines().filter(|line| line.starts_with("PROBLEM")).collect();
    assert_eq!(problems.len(), 1, "{}", check.stdout);
    for part in parts {
        assert!(run.error().contains(part), "{part:?} is not in {}", run.error());
        assert!(problems[0].contains(part), "{part:?} is not in {}", problems[0]);
    }
}

#[test]
fn a_run_on_a_file_system_without_locks_is_refused_with_the_fix() {
    let lab = Lab::new();
    let library = NoLocks::compile(lab.folder.path());
    let run = lab.path("run");
    for error in ERRORS {
        let command = |overrides: &[&str]| {
            let mut command = lab.command(0, &[&["train.max_steps=2"], overrides].concat());
            library.apply(&mut command, &run, error);
            command
        };
        std::fs::create_dir_all(&run).unwrap();
        assert_refused(|| command(&[]), &[text(&run), "cannot be locked", "-o flock", "run.lease=none"]);
        assert_eq!(std::fs::read_dir(&run).unwrap().count(), 0, "a file is left behind");
        let check = ProcessOutput::of(command(&["run.lease=none"]).arg("--check").output().unwrap()).succeeded();
        assert!(
            check.stdout.contains("note     lease") && check.stdout.contains("run.lease is none"),
            "{}",
            check.stdout
        );
        let output = ProcessOutput::of(command(&["run.lease=none"]).output().unwrap()).succeeded();
        let warning = "warning: run.lease is none: nothing keeps a second run from writing to ";
        assert!(output.stdout.contains(&format!("{warning}{}", run.display())), "{}", output.stdout);
        assert_eq!(lab.checkpoints("run"), ["step-00000002"]);
        std::fs::remove_dir_all(&run).unwrap();
    }
}

#[test]
fn a_cache_on_a_file_system_without_locks_is_refused_with_the_fix() {
    let cloud = Cloud::new();
    cloud.publish_dataset();
    let library = NoLocks::compile(cloud.lab.folder.path());
    let cache = cloud.lab.path("cache");
    let set = format!("data.cache_dir={}", cache.display());
    for error in ERRORS {
        let command = || {
            let mut command = cloud.command(0, &["data.url=s3://data", &set, "train.max_steps=2"]);
            library.apply(&mut command, &cache, error);
            command
        };
        std::fs::create_dir_all(&cache).unwrap();
        assert_refused(command, &[text(&cache), "cannot be locked", "-o flock", "set data.cache_dir"]);
        std::fs::remove_dir_all(&cache).unwrap();
    }
}

#[test]
fn a_dataset_is_written_without_a_lease_only_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    picture_tree(&path("pictures"), 5);
    tiny_vae(&path("vae.safetensors"));
    let library = NoLocks::compile(folder.path());
    std::fs::create_dir(path("out")).unwrap();
    let encode = |more: &[&str]| {
        let mut command = Command::new(program("arinar-data"));
        command.arg("encode").arg("--images").arg(path("pictures")).arg("--vae").arg(path("vae.safetensors"));
        command.arg("--out").arg(path("out")).args(["--image-size=8", "--threads=1"]).args(more);
        exit_status(&library.apply(&mut command, &path("out"), ERRORS[0]).output().unwrap())
    };
    let (code, _, stderr) = encode(&[]);
    assert!(code == 78 && stderr.contains("cannot be locked") && stderr.contains("--no-lease"), "{code} {stderr}");
    assert_eq!(std::fs::read_dir(path("out")).unwrap().count(), 0);
    let (code, stdout, stderr) = encode(&["--no-lease"]);
    assert!(code == 0 && stderr.contains("warning: --no-lease: nothing keeps a second job"), "{code} {stderr}");
    assert!(stdout.contains(&format!("writing the dataset to {}", path("out").display())), "{stdout}");
    assert!(path("out/manifest.json").exists());
}

#[test]
fn a_run_in_a_store_without_conditional_puts_is_refused_with_the_fix() {
    for (conditions, reason) in [
        (Conditions::NotImplemented, "501 NotImplemented"),
        (Conditions::Ignored, "ignores the condition If-None-Match"),
        (Conditions::MatchIgnored, "ignores the condition If-Match"),
    ] {
        let cloud = Cloud::new();
        cloud.server.set_faults(Faults { conditions, ..Faults::default() });
        let parts = ["the store of s3://runs/tiny cannot keep two writers apart", reason, "run.lease=none"];
        assert_refused(|| cloud.command(0, &["train.max_steps=2"]), &parts);
        let objects = || std::fs::read_dir(cloud.lab.path("s3/runs")).unwrap().map(|entry| entry.unwrap().file_name());
        let left = |folder: &std::ffi::OsString| walk(&cloud.lab.path("s3/runs").join(folder));
        assert!(objects().all(|name| left(&name) == 0), "the probe left an object behind");
    }
    let cloud = Cloud::new();
    cloud.server.set_faults(Faults { conditions: Conditions::NotImplemented, ..Faults::default() });
    let check = ProcessOutput::of(cloud.command(2, &["run.lease=none"]).arg("--check").output().unwrap()).succeeded();
    assert!(check.stdout.contains("note     lease"), "{}", check.stdout);
    let output = cloud.train(2, &["train.max_steps=2", "run.lease=none"]).succeeded();
    assert!(output.stdout.contains("warning: run.lease is none"), "{}", output.stdout);
    assert_eq!(cloud.stored(), ["step-00000002"]);
}

/// Returns the number of files below a path that are objects and not metadata of the server.
fn walk(path: &std::path::Path) -> usize {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    match std::fs::read_dir(path) {
        Ok(entries) => entries.map(|entry| walk(&entry.unwrap().path())).sum(),
        Err(_) => usize::from(!name.starts_with('.')),
    }
}
