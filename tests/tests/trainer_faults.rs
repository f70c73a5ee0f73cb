//! Faults while training: damaged data, numbers that are not finite, a full disk.
#![allow(clippy::unwrap_used)]

mod trainer_support;

use std::process::Command;

use arinar_trainer::exit;
use trainer_support::{Ended, Lab, trainer, write_dataset};

fn failed(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.code, Some(i32::from(exit::FAILED)), "{}\n{}", ended.stdout, ended.stderr);
    for part in parts {
        assert!(ended.error().contains(part), "{part:?} is not in {}", ended.error());
    }
}

#[test]
fn a_sample_that_is_not_finite_is_named_and_touches_nothing() {
    let lab = Lab::new();
    write_dataset(&lab.path("dataset"), Some(20));
    let ended = lab.train(2, &["checkpoint.every=1 steps", "train.max_steps=7"]);
    failed(&ended, &["the loss is", "picture 120 (sample 20)", "train.non_finite=skip"]);
    let step: u64 = ended.error().split_once("step ").unwrap().1.split(':').next().unwrap().parse().unwrap();
    assert!((1..=6).contains(&step), "the first epoch meets it");
    // What was saved before it is whole: training goes on from there, without the step.
    let again = lab.train(2, &["train.non_finite=skip", "train.max_steps=8"]).succeeded();
    assert!(again.stdout.contains("picture 120 (sample 20)"), "{}", again.stdout);
    assert!(again.stdout.contains("this step is skipped"), "{}", again.stdout);
    let tensors = lab.tensors("run/step-00000008");
    for (name, (_, bytes)) in &tensors {
        let finite = bytes.chunks_exact(4).all(|float| f32::from_le_bytes(float.try_into().unwrap()).is_finite());
        assert!(finite, "{name}");
    }
}

#[test]
fn skipping_is_bounded() {
    let lab = Lab::new();
    let wild = ["optim.lr_per_256=1e30", "optim.warmup_epochs=0", "optim.weight_decay=0"];
    failed(&lab.train(0, &wild), &["the loss is", "(all of this rank's)"]);
    let skipping = [&wild[..], &["train.non_finite=skip", "train.max_skips=3"]].concat();
    let ended = lab.train(0, &skipping);
    failed(&ended, &["the loss is"]);
    assert_eq!(ended.stdout.matches("this step is skipped").count(), 3);
    assert_eq!(lab.checkpoints("run"), [""; 0]);
}

#[test]
fn a_damaged_shard_is_named_and_ends_all_ranks() {
    let lab = Lab::new();
    let shard = lab.path("dataset/shard-00001.safetensors");
    let whole = std::fs::read(&shard).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() - 100] ^= 4;
    for damaged in [&whole[..whole.len() - 1], &flipped] {
        std::fs::write(&shard, damaged).unwrap();
        failed(&lab.train(2, &[]), &["shard-00001.safetensors"]);
    }
    assert_eq!(lab.checkpoints("run"), [""; 0]);
}

/// The command that makes writing fail: a file system that is full where this user may mount one,
/// else a limit on the size of files.
fn without_space(lab: &Lab, overrides: &[&str]) -> Ended {
    let run = lab.path("run");
    let saved = lab.path("saved");
    std::fs::rename(&run, &saved).unwrap();
    std::fs::create_dir(&run).unwrap();
    let script = r#"
        run=$1 saved=$2; shift 2
        if mount -t tmpfs -o size=$(($(du -sk "$saved" | cut -f1) + 24))k none "$run" 2>/dev/null; then
            cp -r "$saved/." "$run"
            "$@"; code=$?
            rm -rf "$saved"; cp -r "$run" "$saved"
            exit $code
        fi
        cp -r "$saved/." "$run"
        trap '' XFSZ
        ulimit -f 16
        "$@"; code=$?
        rm -rf "$saved"; cp -r "$run" "$saved"
        exit $code"#;
    let may_mount = Command::new("unshare").args(["-rm", "true"]).output();
    let may_mount = may_mount.is_ok_and(|output| output.status.success());
    let mut command = Command::new(if may_mount { "unshare" } else { "env" });
    if may_mount {
        command.arg("-rm");
    }
    command.args(["bash", "-c", script, "bash"]).arg(&run).arg(&saved);
    command.args(["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]);
    command.arg(trainer()).arg("--config").arg(lab.path("tiny.yaml"));
    for value in overrides {
        command.arg("--set").arg(value);
    }
    let ended = Ended::of(command.output().unwrap());
    std::fs::remove_dir_all(&run).unwrap();
    std::fs::rename(&saved, &run).unwrap();
    ended
}

#[test]
fn a_full_disk_ends_the_run_and_leaves_the_last_checkpoint() {
    let lab = Lab::new();
    lab.train(2, &["train.max_steps=4"]).succeeded();
    let before = lab.tensors("run/step-00000004");
    let ended = without_space(&lab, &["train.max_steps=8"]);
    failed(&ended, &["step-00000008"]);
    assert_eq!(lab.checkpoints("run"), ["step-00000004"]);
    assert!(lab.tensors("run/step-00000004") == before);
    // With space again the run goes on and ends where it would have.
    lab.train(2, &["train.max_steps=8"]).succeeded();
    let whole = Lab::new();
    whole.train(2, &["train.max_steps=8"]).succeeded();
    assert!(lab.tensors("run/step-00000008") == whole.tensors("run/step-00000008"));
}
