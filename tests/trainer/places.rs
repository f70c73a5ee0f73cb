//! Tests of places in the configuration and in options of all programs: what looks like a URL and is none, and a remote
//! place where only a path works, are refused before any file or folder is created.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use arinar_tests::programs::program;
use arinar_tests::support::trainer::{Lab, ProcessOutput};

/// Returns the names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs a program in a new folder with the home folder `home`.
fn in_folder(command: &mut Command, lab: &Lab) -> ProcessOutput {
    let (work, home) = (lab.path("work"), lab.path("home"));
    std::fs::create_dir_all(&work).unwrap();
    std::fs::create_dir_all(&home).unwrap();
    ProcessOutput::of(command.current_dir(work).env("HOME", home).output().unwrap())
}

#[test]
fn a_misspelled_place_in_the_configuration_is_refused_by_check_and_run() {
    let lab = Lab::new();
    let home_of = "~nobody-of-this-name/run";
    for (key, place) in [
        ("run.dir", "s3:/bucket/run"),
        ("run.dir", "S3://bucket/run"),
        ("run.dir", "s3//bucket/run"),
        ("run.dir", home_of),
        ("run.dir", "s3://bucket//run"),
        ("run.log_dir", "s3://bucket/logs"),
        ("run.log_dir", "$HOME/logs"),
        ("data.url", "gs:/bucket/data"),
        ("data.url", "hf://datasets/data"),
        ("data.cache_dir", "s3://bucket/cache"),
        ("checkpoint.spool_dir", "s3://bucket/spool"),
        ("checkpoint.resume", "s3:/bucket/run"),
    ] {
        let set = format!("{key}={place}");
        let command = || lab.command(0, &[&set, "train.max_steps=1"]);
        let expected = format!("{key}: {place:?} ");
        let run = in_folder(&mut command(), &lab);
        assert!(run.code == Some(78) && run.error().contains(&expected), "{set}: {}\n{}", run.stdout, run.stderr);
        let check = in_folder(command().arg("--check"), &lab);
        let problems: Vec<&str> = check.stdout.lines().filter(|line| line.starts_with("PROBLEM")).collect();
        assert_eq!((check.code, problems.len()), (Some(78), 1), "{set}: {}", check.stdout);
        assert!(problems[0].contains(&expected), "{}", problems[0]);
        assert!(names(&lab.path("work")).is_empty(), "{set}: {:?}", names(&lab.path("work")));
    }
}

#[test]
fn a_home_folder_and_strange_names_are_used() {
    let lab = Lab::new();
    let places = ["run.dir=~/run", "run.log_dir=~/logs", "train.max_steps=1"];
    let output = in_folder(&mut lab.command(0, &places), &lab).succeeded();
    let home = lab.path("home");
    assert_eq!(names(&home), ["logs", "run"]);
    for (what, name) in [("run folder: ", "run"), ("log folder: ", "logs")] {
        let line = format!("{what}{}", home.join(name).display());
        assert!(output.stdout.lines().any(|found| found == line), "{line:?} is not in {}", output.stdout);
    }
    assert!(home.join("run/step-00000001/manifest.json").exists());
    assert!(names(&lab.path("work")).is_empty());
    // A path that begins with ./ is literal.
    let places = ["run.dir=./s3:/a%20b", "run.log_dir=./~", "train.max_steps=1"];
    in_folder(&mut lab.command(0, &places), &lab).succeeded();
    assert!(lab.path("work/s3:/a%20b/step-00000001/manifest.json").exists());
    assert_eq!(names(&lab.path("work")), ["s3:", "~"]);
}

#[test]
fn options_of_all_programs_are_checked() {
    let lab = Lab::new();
    let config = lab.path("tiny.yaml").display().to_string();
    for (name, option, arguments) in [
        ("arinar-trainer", "--config", "--config s3://bucket/tiny.yaml"),
        ("arinar-trainer", "--config", "--config s3:/bucket/tiny.yaml --check"),
        ("arinar-trainer", "--import", "--config CONFIG --import s3:/bucket/x.pth"),
        ("arinar-trainer", "--export", "--export S3://bucket/x --run runs/a"),
        ("arinar-trainer", "--run", "--export x.safetensors --run gs:/bucket/a"),
        ("arinar-sample", "--run", "--run s3//bucket/a"),
        ("arinar-sample", "--out", "--run runs/a --out s3:/bucket/a"),
        ("arinar-sample", "--vae", "--run runs/a --vae hf://x/y"),
        ("arinar-data", "--out", "encode --images p --vae v --out s3:/bucket/a"),
        ("arinar-data", "--images", "encode --images s3://bucket/p --vae v --out a"),
        ("arinar-data", "--images", "encode --images p ~nobody/q --vae v --out a"),
        ("arinar-data", "--vae", "encode --images p --vae s3://bucket/v --out a"),
        ("arinar-data", "--from", "convert --from gs://bucket/p --out a"),
        ("arinar-data", "--out", "convert --from p --out GS://bucket/a"),
        ("arinar-data", "--out", "train-vae --images p --out s3://bucket/v"),
        ("arinar-data", "URL", "inspect s3:/bucket/a"),
        ("arinar-data", "URL", "verify $HOME/a"),
        ("arinar-data", "--from", "verify a --repair --from az:container"),
        ("arinar-data", "--cache-dir", "verify a --repair --cache-dir s3://bucket/c"),
        ("arinar-data", "--data", "simulate --data https://bucket.s3.amazonaws.com/a"),
        ("arinar-data", "--cache-dir", "bench --data a --cache-dir az://c/x"),
        ("arinar-launcher", "--hostfile", "--config CONFIG --hostfile s3://bucket/hosts"),
        ("arinar-launcher", "--trainer", "--config CONFIG --trainer s3:/bucket/trainer"),
        ("arinar-launcher", "--mpirun", "--config CONFIG --mpirun ~nobody/mpirun"),
        ("arinar-launcher", "--config", "--config s3:/bucket/tiny.yaml"),
    ] {
        let words = arguments.split(' ').map(|word| if word == "CONFIG" { &config } else { word });
        let output = in_folder(Command::new(program(name)).args(words), &lab);
        assert_eq!(output.code, Some(78), "{name} {arguments}: {}\n{}", output.stdout, output.stderr);
        // --check reports the problem on standard output.
        let text = format!("{}{}", output.stdout, output.stderr);
        let expected = format!("{option}: \"");
        assert!(text.lines().any(|line| line.contains(&expected)), "{name} {arguments}: {expected:?} is not in {text}");
        assert!(names(&lab.path("work")).is_empty(), "{name} {arguments}: {:?}", names(&lab.path("work")));
    }
}

#[test]
fn a_home_folder_is_used_in_options() {
    let lab = Lab::new();
    std::fs::create_dir_all(lab.path("home")).unwrap();
    std::fs::rename(lab.path("dataset"), lab.path("home/dataset")).unwrap();
    std::fs::copy(lab.path("tiny.yaml"), lab.path("home/tiny.yaml")).unwrap();
    let inspect = in_folder(Command::new(program("arinar-data")).args(["inspect", "~/dataset"]), &lab).succeeded();
    assert!(inspect.stdout.contains(&lab.path("home/dataset").display().to_string()), "{}", inspect.stdout);
    let print = ["--config", "~/tiny.yaml", "--print-config", "--set", "run.log_dir=~/logs"];
    let printed = in_folder(Command::new(program("arinar-trainer")).args(print), &lab).succeeded();
    let logs = lab.path("home/logs").display().to_string();
    assert!(printed.stdout.contains(&format!("\"log_dir\": \"{logs}\"")), "{}", printed.stdout);
}
