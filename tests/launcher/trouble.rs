//! What goes wrong on a bad machine, with the real launcher, the real trainer and the real mpirun: one line each that names
//! the thing, the place and the cure, and a restart only where one can help.
#![allow(clippy::unwrap_used)]

use std::{os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use arinar_tests::support::launcher::{Said, program, until};
use arinar_tests::support::trainer::{trainer, write_dataset};
use arinar_tests::support::trial::{Trial, started_by};

/// What the launcher says last, which is the whole story.
#[track_caller]
fn last_line(said: &Said) -> &str {
    let errors: Vec<&str> = said.stderr.lines().filter(|line| line.starts_with("arinar-launcher: error: ")).collect();
    assert_eq!(errors.len(), 1, "{}", said.stderr);
    assert_eq!(said.stderr.lines().last(), Some(errors[0]), "{}", said.stderr);
    errors[0]
}

/// Asserts that the last line has all these parts.
#[track_caller]
fn ends_with(said: &Said, parts: &[&str]) {
    for part in parts {
        assert!(last_line(said).contains(part), "{part:?} is not in {}", last_line(said));
    }
}

/// A program that does something before it becomes the trainer.
fn trainer_after(trial: &Trial, before: &str) -> PathBuf {
    let path = trial.lab.path("trainer");
    let script = format!("#!/bin/bash\n{before}\nexec {} \"$@\"\n", trainer().display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// The most address space that rank 1 had so far, in KiB.
fn peak_of_rank_1(trial: &Trial) -> u64 {
    let running = trial.start(&[]);
    trial.next_checkpoint();
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.rank(1))).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_rank_without_memory_says_so() {
    let trial = Trial::tiny(&["train.max_steps=1000000", "checkpoint.every=5 steps"]);
    let limit = peak_of_rank_1(&trial) + (64 << 10);
    let trial = Trial::tiny(&["batch.global=8192", "batch.micro=4096"]);
    // Only one of them, as when something else runs beside it.
    let limited = trainer_after(&trial, &format!("[ \"$OMPI_COMM_WORLD_RANK\" != 1 ] || ulimit -v {limit}"));
    let said = trial.run(&["--trainer", limited.to_str().unwrap(), "--max-restarts", "0"]).ended(1);
    ends_with(
        &said,
        &[
            "--max-restarts 0 is used up",
            "rank 1 in step 1 (compute) is out of memory while it holds",
            "lower batch.micro",
        ],
    );
}

/// The launcher, with a file system of this size over one of the trial's folders.
fn on_a_small_disk(trial: &Trial, folder: &str, kilobytes: u64, arguments: &[&str]) -> Said {
    let place = trial.lab.path(folder);
    std::fs::create_dir_all(&place).unwrap();
    let mut starter = Command::new("unshare");
    let script = "mount -t tmpfs -o size=$1k none \"$2\" && shift 2 && exec \"$@\"";
    starter.args(["--map-root-user", "--mount", "sh", "-c", script, "sh", &kilobytes.to_string()]).arg(place);
    Said::by(&mut started_by(starter, &trial.command(arguments)))
}

#[test]
fn a_full_disk_is_named() {
    let trial = Trial::tiny(&["train.max_steps=1000000", "checkpoint.every=5 steps", "checkpoint.keep_last=1000"]);
    let said = on_a_small_disk(&trial, "run", 2000, &["--max-restarts", "0"]).ended(1);
    let place = trial.lab.path("run").display().to_string();
    ends_with(&said, &["--max-restarts 0 is used up", "no space left while writing", &place, "free some space"]);
}

#[test]
fn a_poisoned_sample_is_named_and_starting_again_does_not_help() {
    let trial = Trial::tiny(&["checkpoint.every=1 steps"]);
    write_dataset(&trial.lab.path("dataset"), Some(20));
    let said = trial.run(&[]).ended(1).says("restart 3 from the newest checkpoint");
    ends_with(
        &said,
        &[
            "3 restarts in a row have gained no step",
            "the last reason: rank ",
            "the loss is",
            "picture 120 (sample 20)",
            "train.non_finite=skip",
        ],
    );
    // As the line says.
    trial.run(&["--set", "train.non_finite=skip"]).ended(0).says("(to 20 of 20), no restart");
}

#[test]
fn what_must_be_changed_is_not_tried_again() {
    let trial = Trial::tiny(&["train.max_steps=4"]);
    trial.run(&[]).ended(0);
    let said = trial.run(&["--set", "model.outer.width=64"]).ended(78).says("no restart");
    ends_with(&said, &["rank 0: ", "model.outer.width is 32", "says 64"]);
    let said = Said::by(trial.command(&[]).env("PATH", "/nowhere")).ended(78);
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    ends_with(&said, &["mpirun is not on the PATH; install Open MPI"]);
}

#[test]
fn a_run_has_one_launcher_and_one_job() {
    let trial = Trial::tiny(&["train.max_steps=1000000", "checkpoint.every=20 steps"]);
    let running = trial.start(&[]);
    trial.next_checkpoint();
    let said = trial.run(&[]).ended(78);
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    ends_with(&said, &[&format!("another arinar-launcher (pid {})", running.pid())]);
    // With other logs only the trainer's lease is left to keep them apart.
    let elsewhere = format!("run.log_dir={}", trial.lab.path("other").display());
    let said = trial.run(&["--set", &elsewhere, "--max-restarts", "0"]).ended(1);
    let run = trial.lab.path("run").display().to_string();
    ends_with(&said, &[&run, "is being written by `arinar-trainer run tiny`", "end it", "write elsewhere"]);
    let known = trial.lab.checkpoints("run");
    until("the first to go on", || (trial.lab.checkpoints("run") != known).then_some(()));
}

#[test]
fn a_host_that_cannot_be_reached_is_named() {
    let trial = Trial::tiny(&["train.max_steps=4"]);
    let hosts = trial.lab.path("hosts");
    std::fs::write(&hosts, "localhost slots=2\nnode-b.invalid slots=2\n").unwrap();
    // As ssh says it, which need not be installed here.
    let agent = trial.lab.path("agent");
    let script = "#!/bin/sh\necho \"ssh: Could not resolve hostname $1: Name or service not known\" >&2\nexit 255\n";
    std::fs::write(&agent, script).unwrap();
    std::fs::set_permissions(&agent, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(program("arinar-launcher"));
    command.arg("--config").arg(trial.lab.path("tiny.yaml")).arg("--hostfile").arg(hosts);
    let said = Said::by(command.env("OMPI_MCA_plm_rsh_agent", &agent)).ended(1);
    ends_with(&said, &["cannot reach node-b.invalid (ssh: Could not resolve hostname", "--hostfile", "--min-ranks"]);
}
