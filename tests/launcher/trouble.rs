//! Tests of environment failures with the real launcher, trainer and mpirun: each is reported in one line with its
//! cause, location and remedy, and the job is restarted only if that can help.
#![allow(clippy::unwrap_used)]

use std::{os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use arinar_tests::programs::program;
use arinar_tests::s3::{Fault, Faults};
use arinar_tests::support::checkpoint::Cloud;
use arinar_tests::support::launcher::{LauncherOutput, wait_until};
use arinar_tests::support::no_locks::{ERRORS, NoLocks};
use arinar_tests::support::trainer::{trainer, write_dataset};
use arinar_tests::support::trial::{Trial, started_by};

/// Returns the launcher's only error, which must be its last line.
#[track_caller]
fn last_error(output: &LauncherOutput) -> &str {
    let errors: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("arinar-launcher: error: ")).collect();
    assert_eq!(errors.len(), 1, "{}", output.stderr);
    assert_eq!(output.stderr.lines().last(), Some(errors[0]), "{}", output.stderr);
    errors[0]
}

/// Asserts that the error contains all parts.
#[track_caller]
fn assert_error(output: &LauncherOutput, parts: &[&str]) {
    for part in parts {
        assert!(last_error(output).contains(part), "{part:?} is not in {}", last_error(output));
    }
}

/// Creates a script that runs shell commands and then becomes the trainer.
fn trainer_after(trial: &Trial, before: &str) -> PathBuf {
    let path = trial.lab.path("trainer");
    let script = format!("#!/bin/bash\n{before}\nexec {} \"$@\"\n", trainer().display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// Returns the peak size of rank 1's address space in a training run, in KiB.
fn peak_of_rank_1(trial: &Trial) -> u64 {
    let running = trial.start(&[]);
    trial.next_checkpoint();
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.rank(1))).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_rank_that_runs_out_of_memory_reports_it() {
    let trial = Trial::tiny(&["train.max_steps=1000000", "checkpoint.every=5 steps"]);
    let limit = peak_of_rank_1(&trial) + (64 << 10);
    let trial = Trial::tiny(&["batch.global=8192", "batch.micro=4096"]);
    // Limit only one rank, as if another program used its memory.
    let limited = trainer_after(&trial, &format!("[ \"$OMPI_COMM_WORLD_RANK\" != 1 ] || ulimit -v {limit}"));
    let output = trial.run(&["--trainer", limited.to_str().unwrap(), "--max-restarts", "0"]).exited_with(1);
    assert_error(
        &output,
        &[
            "--max-restarts 0 is used up",
            "rank 1 in step 1 (compute) is out of memory while it holds",
            "lower batch.micro",
        ],
    );
}

/// Runs the launcher with a file system of this size mounted on one of the trial's folders.
fn on_a_small_disk(trial: &Trial, folder: &str, kilobytes: u64, arguments: &[&str]) -> LauncherOutput {
    let path = trial.lab.path(folder);
    std::fs::create_dir_all(&path).unwrap();
    let mut starter = Command::new("unshare");
    let script = "mount -t tmpfs -o size=$1k none \"$2\" && shift 2 && exec \"$@\"";
    starter.args(["--map-root-user", "--mount", "sh", "-c", script, "sh", &kilobytes.to_string()]).arg(path);
    LauncherOutput::of(&mut started_by(starter, &trial.command(arguments)))
}

#[test]
fn a_full_disk_is_reported() {
    let trial = Trial::tiny(&["train.max_steps=1000000", "checkpoint.every=5 steps", "checkpoint.keep_last=1000"]);
    let output = on_a_small_disk(&trial, "run", 2000, &["--max-restarts", "0"]).exited_with(1);
    let path = trial.lab.path("run").display().to_string();
    assert_error(&output, &["--max-restarts 0 is used up", "no space left while writing", &path, "free some space"]);
}

#[test]
fn a_non_finite_sample_is_named_and_restarts_do_not_help() {
    let trial = Trial::tiny(&["checkpoint.every=1 steps"]);
    write_dataset(&trial.lab.path("dataset"), Some(20));
    let output = trial.run(&[]).exited_with(1).reports("restart 1 from the newest checkpoint");
    assert!(!output.stderr.contains("restart 2 "), "{}", output.stderr);
    assert_error(
        &output,
        &[
            "the job ended twice at step ",
            "with the same error, giving up; rank ",
            "the loss is",
            "picture 120 (sample 20)",
            "train.non_finite=skip",
        ],
    );
    // The suggested setting helps.
    trial.run(&["--set", "train.non_finite=skip"]).exited_with(0).reports("(to 20 of 20), no restart");
}

#[test]
fn errors_that_require_a_change_are_not_retried() {
    let trial = Trial::tiny(&["train.max_steps=4"]);
    trial.run(&[]).exited_with(0);
    let output = trial.run(&["--set", "model.outer.width=64"]).exited_with(78).reports("no restart");
    assert_error(&output, &["rank 0: ", "model.outer.width is 32", "says 64"]);
    let output = LauncherOutput::of(trial.command(&[]).env("PATH", "/nowhere")).exited_with(78);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    assert_error(&output, &["mpirun is not on the PATH; install Open MPI"]);
}

#[test]
fn a_run_has_one_launcher_and_one_job() {
    let trial = Trial::tiny(&["train.max_steps=1000000", "checkpoint.every=20 steps"]);
    let running = trial.start(&[]);
    trial.next_checkpoint();
    let output = trial.run(&[]).exited_with(78);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    assert_error(&output, &[&format!("another arinar-launcher (pid {})", running.pid())]);
    // With another log folder, only the trainer's lease prevents a second writer.
    let elsewhere = format!("run.log_dir={}", trial.lab.path("other").display());
    let output = trial.run(&["--set", &elsewhere, "--max-restarts", "0"]).exited_with(1);
    let run = trial.lab.path("run").display().to_string();
    assert_error(&output, &[&run, "is being written by `arinar-trainer run tiny`", "stop it", "write elsewhere"]);
    let known = trial.lab.checkpoints("run");
    wait_until("the first run to continue", || (trial.lab.checkpoints("run") != known).then_some(()));
}

#[test]
fn an_unreachable_host_is_named() {
    let trial = Trial::tiny(&["train.max_steps=4"]);
    let hosts = trial.lab.path("hosts");
    std::fs::write(&hosts, "localhost slots=2\nnode-b.invalid slots=2\n").unwrap();
    // A stand-in for ssh, which need not be installed, with its error message.
    let agent = trial.lab.path("agent");
    let script = "#!/bin/sh\necho \"ssh: Could not resolve hostname $1: Name or service not known\" >&2\nexit 255\n";
    std::fs::write(&agent, script).unwrap();
    std::fs::set_permissions(&agent, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(program("arinar-launcher"));
    command.arg("--config").arg(trial.lab.path("tiny.yaml")).arg("--hostfile").arg(hosts);
    let output = LauncherOutput::of(command.env("OMPI_MCA_plm_rsh_agent", &agent)).exited_with(1);
    assert_error(
        &output,
        &["cannot reach node-b.invalid (ssh: Could not resolve hostname", "--hostfile", "--min-ranks"],
    );
}

#[test]
fn a_log_folder_without_locks_is_used_with_a_warning() {
    let trial = Trial::tiny(&["train.max_steps=2"]);
    let library = NoLocks::compile(trial.lab.folder.path());
    for error in ERRORS {
        let logs = trial.lab.path("logs");
        let output = LauncherOutput::of(library.apply(&mut trial.command(&[]), &logs, error)).exited_with(0);
        let warning = format!("{}/ranks cannot be locked", logs.display());
        assert!(output.stderr.contains(&warning) && output.stderr.contains("set run.log_dir"), "{}", output.stderr);
    }
}

#[test]
fn a_store_that_refuses_the_start_ends_the_run_at_once() {
    let cloud = Cloud::new();
    let places = ["run.dir=s3://runs/tiny", "train.max_steps=4"];
    for (code, remedy) in
        [("AccessDenied", "check credentials and permissions"), ("RequestTimeTooSkewed", "set the clock")]
    {
        cloud.server.set_faults(Faults::always(Fault::Refusal(code), &[]));
        let spool = format!("checkpoint.spool_dir={}", cloud.lab.path("spool").display());
        let mut trial = Trial::tiny(&[&places[..], &[&spool]].concat());
        trial.ranks = 1;
        let output =
            LauncherOutput::of(trial.command(&[]).envs(cloud.environment())).exited_with(78).reports("no restart");
        assert_error(&output, &[remedy, "s3://runs/tiny"]);
    }
}
