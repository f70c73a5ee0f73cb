//! Tests of faults during training: damaged data, non-finite numbers and a full disk.
#![allow(clippy::unwrap_used)]

use std::{path::Path, process::Command};

use arinar_protocol::exit_code;
use arinar_tests::mpi::session_folder;
use arinar_tests::reference::records::Records;
use arinar_tests::support::trainer::{Lab, ProcessOutput, trainer, write_dataset};
use tch::Tensor;

/// Asserts exit code 1 and a one-line error with all of the parts.
fn assert_failed(output: &ProcessOutput, parts: &[&str]) {
    assert_eq!(output.code, Some(i32::from(exit_code::FAILED)), "{}\n{}", output.stdout, output.stderr);
    for part in parts {
        assert!(output.error().contains(part), "{part:?} is not in {}", output.error());
    }
}

/// Returns the samples of the first `steps` steps by the definition of the order.
fn samples(lab: &Lab, steps: u64) -> Vec<Vec<usize>> {
    let records = Records::read(&lab.path("dataset"));
    (0..steps).map(|step| (8 * step..8 * (step + 1)).map(|position| records.at(position, 5, 0).1).collect()).collect()
}

#[test]
fn a_non_finite_sample_is_named_and_can_be_skipped() {
    const BAD_STEP: usize = 5;
    let lab = Lab::new();
    let steps = samples(&lab, 12);
    let bad = steps[BAD_STEP - 1][3];
    let skipped = steps.iter().filter(|samples| samples.contains(&bad)).count();
    assert_eq!(skipped, 2, "once in each epoch");
    write_dataset(&lab.path("dataset"), Some(bad as u64));
    let keep = "checkpoint.keep_last=100";
    let output = lab.train(2, &["checkpoint.every=1 steps", keep, "train.max_steps=7"]);
    let picture = format!("picture {} (sample {bad})", 100 + bad);
    assert_failed(&output, &[&format!("step {BAD_STEP}: the loss is"), &picture, "train.non_finite=skip"]);
    // The checkpoint of the step before is completed before the run ends.
    let last = lab.checkpoints("run").pop().unwrap();
    assert_eq!(last, "step-00000004");
    assert!(output.stdout.contains("saved step-00000004"), "{}", output.stdout);
    let before = lab.tensors(&format!("run/{last}"));
    // Training resumes from there and skips the steps that contain the sample.
    let again = lab.train(2, &["train.non_finite=skip", keep, "train.max_steps=12"]).succeeded();
    assert!(again.stdout.contains(&picture), "{}", again.stdout);
    assert_eq!(again.stdout.matches("this step is skipped").count(), skipped, "{}", again.stdout);
    assert_eq!(state(&lab, 12)["optimizer_steps"], 12 - skipped);
    // The curve counts the skipped steps of both starts.
    let curve = lab.curve("logs", "skipped_steps");
    let count = |step: usize| steps[..step].iter().filter(|samples| samples.contains(&bad)).count() as f32;
    assert_eq!(
        curve,
        (1..=12).map(|step| (step as u64, count(step))).filter(|(step, _)| curve.contains_key(step)).collect()
    );
    assert_eq!(curve.keys().copied().collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    let tensors = lab.tensors("run/step-00000012");
    for (name, (_, bytes)) in &tensors {
        let finite = bytes.chunks_exact(4).all(|float| f32::from_le_bytes(float.try_into().unwrap()).is_finite());
        assert!(finite, "{name}");
    }
    for name in ["model/z_proj.weight", "ema/z_proj.weight", "optimizer/exp_avg.z_proj.weight"] {
        assert!(tensors[name] != before[name], "{name} was not trained further");
    }
}

fn state(lab: &Lab, step: u64) -> serde_json::Value {
    let state = std::fs::read(lab.path(&format!("run/step-{step:08}/state.json"))).unwrap();
    serde_json::from_slice(&state).unwrap()
}

#[test]
fn a_run_with_skipped_steps_resumes_bit_identically() {
    let (whole, parts) = (Lab::new(), Lab::new());
    let steps = samples(&whole, 9);
    let bad = steps[4][3];
    for lab in [&whole, &parts] {
        write_dataset(&lab.path("dataset"), Some(bad as u64));
    }
    let skip = "train.non_finite=skip";
    whole.train(2, &[skip, "train.max_steps=9"]).succeeded();
    // Interrupted before the skipped step, after it, and later.
    for steps in ["train.max_steps=4", "train.max_steps=5", "train.max_steps=7", "train.max_steps=9"] {
        parts.train(2, &[skip, steps]).succeeded();
    }
    assert_eq!(state(&parts, 5)["skipped_steps"], 1);
    assert_eq!(state(&parts, 9)["skipped_steps"], u64::from(steps[8].contains(&bad)));
    assert!(whole.tensors("run/step-00000009") == parts.tensors("run/step-00000009"));
    for tag in ["skipped_steps", "lr"] {
        assert_eq!(whole.curve("logs", tag), parts.curve("logs", tag), "{tag}");
    }
}

/// Writes weights with which every loss is finite and every gradient infinite: the first layer of an MLP is zero, so that
/// neither the scale of its inputs nor the weights of its second layer affect the loss, but both multiply the gradient.
fn write_overflowing_weights(lab: &Lab, file: &Path) {
    lab.train(0, &["train.max_steps=1"]).succeeded();
    let mut export = Command::new(trainer());
    export.arg("--export").arg(file).arg("--run").arg(lab.path("run")).args(["--weights", "model"]);
    ProcessOutput::of(export.output().unwrap()).succeeded();
    std::fs::remove_dir_all(lab.path("run")).unwrap();
    std::fs::remove_dir_all(lab.path("logs")).unwrap();
    let mut tensors = Tensor::read_safetensors(file).unwrap();
    for (name, tensor) in &mut tensors {
        let value = match name.strip_prefix("decoder_blocks.0.") {
            Some("mlp.fc1.weight" | "mlp.fc1.bias") => 0.0,
            Some("norm2.weight" | "mlp.fc2.weight") => 1e30,
            _ => continue,
        };
        *tensor = tensor.full_like(value);
    }
    Tensor::write_safetensors(&tensors, file).unwrap();
}

#[test]
fn an_infinite_gradient_of_a_finite_loss_is_skipped_on_every_rank() {
    let lab = Lab::new();
    let file = lab.path("overflowing.safetensors");
    write_overflowing_weights(&lab, &file);
    let import = |overrides: &[&str]| {
        let mut command = lab.command(2, overrides);
        ProcessOutput::of(command.arg("--import").arg(&file).output().unwrap())
    };
    let output = import(&["train.non_finite=stop", "train.max_steps=4"]);
    assert_failed(
        &output,
        &["step 1: the loss is ", "the gradient norm ", "samples: rank 0: picture ", "rank 1: picture "],
    );
    let loss = output.error().split("the loss is ").nth(1).unwrap().split(',').next().unwrap();
    assert!(loss.parse::<f64>().unwrap().is_finite(), "{}", output.error());
    assert_eq!(lab.checkpoints("run"), [""; 0]);
    // Every step is skipped, and the weights stay as they were.
    let output = import(&["train.non_finite=skip", "train.max_steps=4", "checkpoint.every=2 steps"]).succeeded();
    assert_eq!(output.stdout.matches("this step is skipped").count(), 4, "{}", output.stdout);
    let stored = lab.tensors("run/step-00000004");
    for (name, tensor) in Tensor::read_safetensors(&file).unwrap() {
        let (shape, bytes) = &stored[&format!("model/{name}")];
        assert!(arinar_tests::support::trainer::tensor(shape, bytes) == tensor, "{name} has changed");
    }
    assert_eq!((&state(&lab, 4)["optimizer_steps"], &state(&lab, 4)["skipped_steps"]), (&0.into(), &4.into()));
    // The bound holds across restarts: four steps are skipped already.
    let output = import(&["train.non_finite=skip", "train.max_steps=20", "train.max_skips=6"]);
    assert_failed(&output, &["step 7: the loss is ", "the 6 steps before it (train.max_skips) were skipped, too"]);
    assert_eq!(output.stdout.matches("this step is skipped").count(), 2, "{}", output.stdout);
}

#[test]
fn the_number_of_skipped_steps_is_bounded() {
    let lab = Lab::new();
    let wild = ["optim.lr_per_256=1e30", "optim.warmup_epochs=0", "optim.weight_decay=0"];
    assert_failed(&lab.train(0, &wild), &["the loss is", "(all of this rank's)"]);
    let skipping = [&wild[..], &["train.non_finite=skip", "train.max_skips=3"]].concat();
    let output = lab.train(0, &skipping);
    assert_failed(&output, &["the loss is"]);
    assert_eq!(output.stdout.matches("this step is skipped").count(), 3);
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
        assert_failed(&lab.train(2, &[]), &["shard-00001.safetensors"]);
    }
    assert_eq!(lab.checkpoints("run"), [""; 0]);
}

/// Trains without space for another checkpoint: on a full file system if this user may mount one, otherwise with a
/// limit on the file size.
fn train_without_space(lab: &Lab, overrides: &[&str]) -> ProcessOutput {
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
    command.args(["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]).env("TMPDIR", session_folder());
    command.arg(trainer()).arg("--config").arg(lab.path("tiny.yaml"));
    for value in overrides {
        command.arg("--set").arg(value);
    }
    let output = ProcessOutput::of(command.output().unwrap());
    std::fs::remove_dir_all(&run).unwrap();
    std::fs::rename(&saved, &run).unwrap();
    output
}

#[test]
fn a_full_disk_ends_the_run_and_leaves_the_last_checkpoint() {
    let lab = Lab::new();
    lab.train(2, &["train.max_steps=4"]).succeeded();
    let before = lab.tensors("run/step-00000004");
    let output = train_without_space(&lab, &["train.max_steps=8"]);
    assert_failed(&output, &["step-00000008"]);
    assert_eq!(lab.checkpoints("run"), ["step-00000004"]);
    assert!(lab.tensors("run/step-00000004") == before);
    // With free space, the run resumes and ends like an undisturbed one.
    lab.train(2, &["train.max_steps=8"]).succeeded();
    let whole = Lab::new();
    whole.train(2, &["train.max_steps=8"]).succeeded();
    assert!(lab.tensors("run/step-00000008") == whole.tensors("run/step-00000008"));
}
