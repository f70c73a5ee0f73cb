//! Tests of killed, preempted and resumed runs, and of damaged and mismatched checkpoints.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use arinar_protocol::exit_code;
use arinar_tests::support::trainer::{Lab, ProcessOutput, write_dataset};
use arinar_trainer::config::TrainConfig;

/// Starts a run and waits until it has logged `step`.
fn start_until(lab: &Lab, ranks: usize, overrides: &[&str], step: u64) -> Child {
    let mut command = lab.command(ranks, overrides);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reached = lines.by_ref().map(|line| line.unwrap()).any(|line| {
        let done = line.strip_prefix("step ").and_then(|rest| rest.split_once('/'));
        done.is_some_and(|(done, _)| done.parse::<u64>().unwrap() >= step)
    });
    assert!(reached, "the run ended before step {step}");
    // Drain the pipe, so that it does not fill up.
    std::thread::spawn(move || lines.count());
    child
}

/// Sends a signal to one of mpirun's ranks.
fn signal_a_rank(mpirun: &Child, signal: &str) {
    let children = format!("/proc/{0}/task/{0}/children", mpirun.id());
    let ranks = std::fs::read_to_string(children).unwrap();
    let rank = ranks.split_whitespace().last().unwrap();
    assert!(Command::new("kill").args([signal, rank]).status().unwrap().success());
}

#[test]
fn a_killed_run_resumes_bit_identically() {
    const EVERY: &str = "checkpoint.every=7 steps";
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let step = 3 + u64::from(nanoseconds / 1000) % 35;
    println!("killed after step {step}");
    let killed = Lab::new();
    let child = start_until(&killed, 2, &["train.max_steps=1000000", EVERY], step);
    signal_a_rank(&child, "-9");
    let output = ProcessOutput::of(child.wait_with_output().unwrap());
    assert_ne!(output.code, Some(0));
    // The number of steps before the signal arrives depends on timing.
    let saved = killed.checkpoints("run").last().map_or(0, |newest| arinar_checkpoint::step_of(newest).unwrap());
    let last = saved.max(step) + 20;
    let steps = format!("train.max_steps={last}");
    killed.train(2, &[&steps, EVERY]).succeeded();
    let whole = Lab::new();
    whole.train(2, &[&steps, EVERY]).succeeded();
    let checkpoint = format!("run/{}", arinar_checkpoint::step_folder_name(last));
    assert!(whole.tensors(&checkpoint) == killed.tensors(&checkpoint));
    for tag in ["train_loss", "lr", "grad_norm"] {
        let curve = whole.curve("logs", tag);
        assert_eq!(curve.keys().copied().collect::<Vec<_>>(), (1..=last).collect::<Vec<_>>(), "{tag}");
        assert_eq!(curve, killed.curve("logs", tag), "{tag}");
    }
}

#[test]
fn a_signal_to_one_rank_saves_and_ends_the_run() {
    let lab = Lab::new();
    for (signal, from) in [("-TERM", 5), ("-USR1", 20)] {
        let child = start_until(&lab, 2, &["train.max_steps=1000000"], from);
        signal_a_rank(&child, signal);
        let output = ProcessOutput::of(child.wait_with_output().unwrap());
        assert_eq!(output.code, Some(i32::from(exit_code::PREEMPTED)), "{}", output.stderr);
        let newest = lab.checkpoints("run").pop().unwrap();
        let step = arinar_checkpoint::step_of(&newest).unwrap();
        assert!(output.stderr.contains(&format!("after saving step {step}")), "{}", output.stderr);
        let more = format!("train.max_steps={}", step + 1);
        let resumed = lab.train(1, &[&more]).succeeded();
        assert!(resumed.stdout.contains(&newest), "{}", resumed.stdout);
    }
}

fn flip_a_byte(lab: &Lab, name: &str) {
    let path = lab.path(name);
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_skipped() {
    let lab = Lab::new();
    lab.train(2, &["train.max_steps=6", "checkpoint.every=3 steps"]).succeeded();
    assert_eq!(lab.checkpoints("run"), ["step-00000003", "step-00000006"]);
    let whole = lab.tensors("run/step-00000006");
    flip_a_byte(&lab, "run/step-00000006/optimizer-00002-of-00002.safetensors");
    let again = lab.train(2, &["train.max_steps=6", "checkpoint.every=3 steps"]).succeeded();
    assert!(again.stdout.contains("warning: damaged checkpoint"), "{}", again.stdout);
    assert!(again.stdout.contains("optimizer-00002-of-00002.safetensors"), "{}", again.stdout);
    assert!(again.stdout.contains("step-00000003"), "{}", again.stdout);
    assert!(lab.tensors("run/step-00000006") == whole);
}

#[test]
fn nothing_is_overwritten_without_an_intact_checkpoint() {
    let lab = Lab::new();
    lab.train(0, &["train.max_steps=2"]).succeeded();
    let state = lab.path("run/step-00000002/state.json");
    let text = std::fs::read(&state).unwrap();
    std::fs::write(&state, &text[..text.len() / 2]).unwrap();
    let output = lab.train(0, &["train.max_steps=4"]);
    assert_eq!(output.code, Some(i32::from(exit_code::CONFIGURATION)));
    assert!(output.error().contains("none of the checkpoints"), "{}", output.stderr);
    assert_eq!(lab.checkpoints("run"), ["step-00000002"]);
}

#[test]
fn a_different_model_is_refused() {
    let lab = Lab::new();
    lab.train(0, &["train.max_steps=2"]).succeeded();
    let before = lab.tensors("run/step-00000002");
    for (ranks, key, value, old) in [(0, "model.outer.width", "64", "32"), (2, "model.head.gaussians", "3", "2")] {
        let output = lab.train(ranks, &[&format!("{key}={value}"), "train.max_steps=4"]);
        assert_eq!(output.code, Some(i32::from(exit_code::CONFIGURATION)), "{}", output.stderr);
        for part in [key, &format!("{key} is {old}"), &format!("says {value}"), "run.dir"] {
            assert!(output.error().contains(part), "{part:?} is not in {}", output.error());
        }
    }
    assert_eq!(lab.checkpoints("run"), ["step-00000002"]);
    assert!(lab.tensors("run/step-00000002") == before);
}

#[test]
fn a_dataset_that_has_changed_since_is_refused() {
    let lab = Lab::new();
    lab.train(0, &["train.max_steps=2"]).succeeded();
    // The same pictures and shards, but other contents.
    write_dataset(&lab.path("dataset"), Some(3));
    let more = ["train.max_steps=4"];
    let output = lab.train(2, &more);
    assert_eq!(output.code, Some(i32::from(exit_code::CONFIGURATION)), "{}", output.stderr);
    let check = lab.command(2, &more).arg("--check").output().unwrap();
    assert_eq!(check.status.code(), Some(i32::from(exit_code::CONFIGURATION)));
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    let parts =
        ["dataset id is 0000000000000000 in the checkpoint and 0000000000000004 now", "has changed since", "data.url"];
    for part in parts {
        assert!(output.error().contains(part) && check.contains(part), "{part:?}: {} or {check}", output.error());
    }
    assert_eq!(lab.checkpoints("run"), ["step-00000002"]);
}

#[test]
fn an_existing_run_is_not_restarted_from_scratch() {
    let lab = Lab::new();
    lab.train(0, &["train.max_steps=2"]).succeeded();
    let output = lab.train(0, &["checkpoint.resume=none"]);
    assert_eq!(output.code, Some(i32::from(exit_code::CONFIGURATION)));
    assert!(output.error().contains("already holds the checkpoint step-00000002"));
    // Another run may start from the same checkpoint, and a new run may start with `none`.
    let from = format!("checkpoint.resume={}", lab.path("run/step-00000002").display());
    let other = format!("run.dir={}", lab.path("other").display());
    lab.train(0, &[&from, &other, "train.max_steps=4"]).succeeded();
    assert_eq!(lab.checkpoints("other"), ["step-00000004"]);
    let fresh = format!("run.dir={}", lab.path("fresh").display());
    lab.train(0, &["checkpoint.resume=none", &fresh, "train.max_steps=1"]).succeeded();
}

#[test]
fn a_run_resumes_at_another_world_size() {
    let (whole, parts) = (Lab::new(), Lab::new());
    let steps = |steps: u64| format!("train.max_steps={steps}");
    let no_dropout = "model.outer.dropout=0";
    whole.train(0, &[no_dropout, &steps(12)]).succeeded();
    for (ranks, until) in [(2, 4), (1, 8), (4, 12)] {
        parts.train(ranks, &[no_dropout, &steps(until)]).succeeded();
    }
    let (whole, parts) = (whole.curve("logs", "train_loss"), parts.curve("logs", "train_loss"));
    assert_eq!(whole.len(), 12);
    for (step, loss) in &whole {
        assert!((parts[step] - loss).abs() < 1e-5 * loss.abs().max(1.0), "step {step}");
    }
}

#[test]
fn retention_deletes_old_checkpoints_and_keeps_some_forever() {
    let lab = Lab::new();
    // 48 samples at 8 per step: an epoch is 6 steps.
    let overrides =
        ["train.max_steps=20", "checkpoint.every=2 steps", "checkpoint.keep_last=2", "checkpoint.keep_every_epochs=1"];
    lab.train(2, &overrides).succeeded();
    let names = ["step-00000006", "step-00000012", "step-00000018", "step-00000020"];
    assert_eq!(lab.checkpoints("run"), names);
    let loaded = arinar_checkpoint::load_ema::<TrainConfig>(lab.path("run").to_str().unwrap()).unwrap();
    assert_eq!(loaded.step, 20);
    assert_eq!(loaded.dataset.class_names, ["one", "two", "three"]);
    assert_eq!(loaded.config.model.outer.width, 32);
    let stored = lab.tensors("run/step-00000020");
    let ema = stored.keys().filter(|name| name.starts_with("ema/")).count();
    assert_eq!(loaded.tensors.len(), ema);
}
