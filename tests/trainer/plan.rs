//! Tests of `arinar-trainer --plan`: its figures match those of real runs.
#![allow(clippy::unwrap_used)]

use std::{path::Path, process::Command};

use arinar_tests::support::checkpoint::Cloud;
use arinar_tests::support::trainer::{Lab, ProcessOutput, launch, trainer};
use arinar_trainer::MEMORY_TOLERANCE;
use serde_json::Value;

fn plan(lab: &Lab, ranks: usize, overrides: &[&str]) -> Value {
    let mut command = lab.command(ranks, overrides);
    read(&ProcessOutput::of(command.args(["--plan", "--log-format", "json"]).output().unwrap()))
}

fn read(output: &ProcessOutput) -> Value {
    assert_eq!(output.code, Some(0), "{}\n{}", output.stdout, output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

fn bytes_below(folder: &Path) -> u64 {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

fn number(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer} in {value}"))
}

fn near(found: f64, truth: f64, tolerance: f64) -> bool {
    (found / truth - 1.0).abs() <= tolerance
}

#[test]
fn checkpoint_count_and_size_match_the_plan() {
    let lab = Lab::new();
    let overrides = ["train.max_steps=22", "checkpoint.every=5 steps", "checkpoint.keep_last=2", "batch.micro=2"];
    let plan = plan(&lab, 2, &overrides);
    assert!(!lab.path("run").exists() && !lab.path("logs").exists(), "a plan must write nothing");
    lab.train(2, &overrides).succeeded();
    let kept = lab.checkpoints("run");
    assert_eq!(number(&plan, "/here/checkpoints/saved"), 5.0);
    assert_eq!(number(&plan, "/here/checkpoints/kept"), kept.len() as f64);
    let truth = bytes_below(&lab.path("run").join(&kept[0])) as f64;
    assert!(near(number(&plan, "/checkpoint_bytes"), truth, 0.02), "{truth}: {plan}");
    let tensors = lab.tensors(&format!("run/{}", kept[0]));
    let trained = tensors.iter().filter(|(name, _)| name.starts_with("model/") && !name.ends_with("zero_k_bias"));
    let parameters: usize = trained.map(|(_, (_, bytes))| bytes.len() / 4).sum();
    let planned = number(&plan, "/model/outer_parameters") + number(&plan, "/model/head_parameters");
    assert_eq!(planned, parameters as f64);
}

#[test]
fn length_and_pace_are_consistent() {
    let lab = Lab::new();
    for ranks in [0, 2] {
        let plan = plan(&lab, ranks, &["train.max_steps=100", "optim.epochs=3"]);
        assert_eq!(number(&plan, "/ranks"), f64::from(ranks.max(1) as u32));
        assert_eq!((number(&plan, "/length/samples"), number(&plan, "/length/steps_per_epoch")), (48.0, 6.0));
        assert_eq!((number(&plan, "/length/steps"), number(&plan, "/length/epochs")), (18.0, 3.0));
        let seconds = number(&plan, "/rehearsal/step_seconds");
        assert_eq!(number(&plan, "/rehearsal/steps"), 8.0, "ten steps, of which the first two do not count");
        assert_eq!(number(&plan, "/rehearsal/images_per_rank"), number(&plan, "/rehearsal/images_per_rank_in_run"));
        assert!(seconds > 0.0 && seconds == number(&plan, "/rehearsal/pace/median"));
        assert!(near(number(&plan, "/here/eta/steps"), 18.0 * seconds, 1e-9));
        assert!(near(number(&plan, "/here/images_per_second"), 8.0 / seconds, 1e-9));
        let flops: f64 = ["encoder", "decoder", "head"]
            .map(|part| number(&plan, &format!("/model/training_flops/{part}")))
            .iter()
            .sum();
        assert!(near(number(&plan, "/model/step_flops"), 8.0 * flops, 1e-9));
    }
    assert!(!lab.path("run").exists() && !lab.path("logs").exists(), "a plan must write nothing");
}

#[test]
fn downloads_match_the_plan() {
    let cloud = Cloud::new();
    cloud.publish_dataset();
    let cache = format!("data.cache_dir={}", cloud.lab.path("cache").display());
    let overrides = ["data.url=s3://data", &cache, "train.max_steps=18"];
    let plan =
        read(&ProcessOutput::of(cloud.command(2, &overrides).args(["--plan", "--log-format=json"]).output().unwrap()));
    assert!(!cloud.lab.path("cache").exists() && !cloud.lab.path("spool").exists(), "a plan must write nothing");
    cloud.server.reset_counters();
    cloud.train(2, &overrides).succeeded();
    let fetched = cloud.server.counters().below("data/shard").sent as f64;
    assert_eq!(number(&plan, "/egress/total"), fetched);
    assert_eq!(number(&plan, "/egress/first_epoch"), fetched);
    assert_eq!(number(&plan, "/egress/later_epochs"), 0.0);
}

/// Uses the demo's model with batches that are large enough for activations to matter.
#[test]
fn estimated_memory_matches_the_rehearsal() {
    let lab = Lab::new();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/demo.yaml");
    for (dropout, batch) in [("0.0", "256"), ("0.1", "256"), ("0.1", "32")] {
        let mut command = launch(0);
        command.arg(trainer()).args(["--plan", "--log-format=json", "--config"]).arg(&demo);
        let places = ["run.dir", "run.log_dir"].map(|key| format!("{key}={}", lab.path(key).display()));
        let dropout = format!("model.outer.dropout={dropout}");
        let batch = format!("batch.global={batch}");
        let values = [places[0].as_str(), &places[1], "data.url=synthetic:1906", "train.threads=1", &dropout, &batch];
        for value in values {
            command.args(["--set", value]);
        }
        let plan = read(&ProcessOutput::of(command.output().unwrap()));
        let (held, estimated) =
            (number(&plan, "/rehearsal/resident_bytes"), number(&plan, "/rehearsal/estimated_bytes"));
        assert!(near(estimated, held, MEMORY_TOLERANCE), "{dropout}, {batch}: {estimated} estimated, {held} held");
    }
}

#[test]
fn the_plan_is_printed_as_text() {
    let lab = Lab::new();
    let output = ProcessOutput::of(lab.command(2, &[]).arg("--plan").output().unwrap()).succeeded();
    for part in [
        "plan of run tiny: 2 rank(s) of 1 thread(s) on 1 machine(s), fp32",
        "parameters            ",
        "FLOPs per step        ",
        "Memory per rank",
        "read in place: nothing is downloaded",
        "over 8 steps",
        "estimates from data sheets",
        "A100-80G",
        "not included          waiting for data",
    ] {
        assert!(output.stdout.contains(part), "{part:?} is not in\n{}", output.stdout);
    }
    // The rest is printed before the rehearsal, which may fail.
    let position = |part: &str| output.stdout.find(part).unwrap();
    let rehearsal = position("over 8 steps");
    assert!(position("one checkpoint  ") < rehearsal && position("estimates from data sheets") < rehearsal);
    assert!(output.stderr.contains("rehearsal: step 10 of 10"), "{}", output.stderr);
}

/// Returns a command that runs the trainer with limited address space.
fn limited(kilobytes: u64) -> Command {
    let mut command = Command::new("bash");
    // Address space that is reserved per core is not used memory.
    command.env("MALLOC_ARENA_MAX", "2").env("OMP_NUM_THREADS", "1");
    command.args(["-c", &format!("ulimit -v {kilobytes}; exec \"$@\""), "bash"]).arg(trainer());
    command
}

/// If the machine has less memory than the system reports, the plan is printed without the rehearsed steps.
#[test]
fn a_plan_is_printed_if_the_rehearsal_runs_out_of_memory() {
    let lab = Lab::new();
    let starts = |limit: &u64| limited(*limit).arg("--version").output().unwrap().status.success();
    let least = (300_000..).step_by(20_000).find(starts).unwrap();
    // A few images of this size fit.
    let mut command = limited(least + 200_000);
    command.args(["--plan", "--log-format=json", "--config"]).arg(lab.path("tiny.yaml"));
    for value in ["data.url=synthetic:", "model.image_size=64", "batch.global=2048", "batch.micro=1024"] {
        command.args(["--set", value]);
    }
    let plan = read(&ProcessOutput::of(command.output().unwrap()));
    assert!(plan["rehearsal"].is_null() && plan["here"].is_null(), "{plan}");
    let why = plan["not_rehearsed"].as_str().unwrap();
    assert!(why.contains("memory ran out") && why.contains("set batch.micro lower"), "{why}");
    assert!(number(&plan, "/memory_per_rank/activations") > 1e9);
}

#[test]
fn the_plan_lists_what_the_eta_leaves_out() {
    let lab = Lab::new();
    let evaluating = "eval={every_epochs: 1, num_images: 50000, guidance_scale: 4.5}";
    for (overrides, parts) in [
        (&[][..], &["waiting for data", "the whole run"][..]),
        (&[evaluating][..], &["waiting for data", "the whole run", "does not evaluate yet"][..]),
    ] {
        let plan = plan(&lab, 0, overrides);
        let excluded = plan["eta_leaves_out"].as_array().unwrap();
        assert_eq!(excluded.len(), parts.len(), "{plan}");
        for (excluded, part) in excluded.iter().zip(parts) {
            assert!(excluded.as_str().unwrap().contains(part), "{excluded}");
        }
        let eta = plan["here"]["eta"].as_object().unwrap();
        assert!(eta.len() == 2 && eta.contains_key("steps") && eta.contains_key("checkpoints"), "{plan}");
        assert!(plan["not_rehearsed"].is_null() && plan["processor"] == "cpu", "{plan}");
    }
}

#[test]
fn a_wrong_configuration_is_reported_in_one_line() {
    let lab = Lab::new();
    let never = "eval={every_epochs: 0, num_images: 1, guidance_scale: 1}";
    for (overrides, part) in
        [(["data.url=/nowhere"], "there is no dataset"), (["optim.ema=2"], "optim.ema"), ([never], "eval.every_epochs")]
    {
        let output = ProcessOutput::of(lab.command(2, &overrides).arg("--plan").output().unwrap());
        assert_eq!(output.code, Some(78), "{}\n{}", output.stdout, output.stderr);
        assert!(output.error().contains(part), "{}", output.stderr);
    }
}
