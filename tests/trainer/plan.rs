//! `arinar-trainer --plan`: its figures against the truth.
#![allow(clippy::unwrap_used)]

use std::{path::Path, process::Command};

use arinar_tests::support::checkpoint::Cloud;
use arinar_tests::support::trainer::{Ended, Lab, launch, trainer};
use arinar_trainer::MEMORY_TOLERANCE;
use serde_json::Value;

fn plan(lab: &Lab, ranks: usize, overrides: &[&str]) -> Value {
    let mut command = lab.command(ranks, overrides);
    read(&Ended::of(command.args(["--plan", "--log-format", "json"]).output().unwrap()))
}

fn read(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

fn bytes_below(folder: &Path) -> u64 {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

fn number(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer} in {value}"))
}

fn near(found: f64, truth: f64, share: f64) -> bool {
    (found / truth - 1.0).abs() <= share
}

#[test]
fn checkpoints_are_as_many_and_as_large_as_planned() {
    let lab = Lab::new();
    let overrides = ["train.max_steps=22", "checkpoint.every=5 steps", "checkpoint.keep_last=2", "batch.micro=2"];
    let plan = plan(&lab, 2, &overrides);
    assert!(!lab.path("run").exists() && !lab.path("logs").exists(), "a plan writes nothing");
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
fn the_length_and_the_pace_agree() {
    let lab = Lab::new();
    for ranks in [0, 2] {
        let plan = plan(&lab, ranks, &["train.max_steps=100", "optim.epochs=3"]);
        assert_eq!(number(&plan, "/ranks"), f64::from(ranks.max(1) as u32));
        assert_eq!((number(&plan, "/length/samples"), number(&plan, "/length/steps_per_epoch")), (48.0, 6.0));
        assert_eq!((number(&plan, "/length/steps"), number(&plan, "/length/epochs")), (18.0, 3.0));
        let seconds = number(&plan, "/rehearsal/step_seconds");
        assert_eq!(number(&plan, "/rehearsal/steps"), 8.0, "ten, of which two do not count");
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
    assert!(!lab.path("run").exists() && !lab.path("logs").exists(), "a plan writes nothing");
}

#[test]
fn a_run_fetches_what_was_planned() {
    let cloud = Cloud::new();
    cloud.publish_dataset();
    let cache = format!("data.cache_dir={}", cloud.lab.path("cache").display());
    let overrides = ["data.url=s3://data", &cache, "train.max_steps=18"];
    let plan = read(&Ended::of(cloud.command(2, &overrides).args(["--plan", "--log-format=json"]).output().unwrap()));
    assert!(!cloud.lab.path("cache").exists() && !cloud.lab.path("spool").exists(), "a plan writes nothing");
    cloud.server.reset_counters();
    cloud.train(2, &overrides).succeeded();
    let fetched = cloud.server.counters().below("data/shard").sent as f64;
    assert_eq!(number(&plan, "/egress/total"), fetched);
    assert_eq!(number(&plan, "/egress/first_epoch"), fetched);
    assert_eq!(number(&plan, "/egress/later_epochs"), 0.0);
}

/// The demo's model, with batches large enough for activations to matter.
#[test]
fn memory_is_what_the_rehearsal_holds() {
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
        let plan = read(&Ended::of(command.output().unwrap()));
        let (held, estimated) =
            (number(&plan, "/rehearsal/resident_bytes"), number(&plan, "/rehearsal/estimated_bytes"));
        assert!(near(estimated, held, MEMORY_TOLERANCE), "{dropout}, {batch}: {estimated} estimated, {held} held");
    }
}

#[test]
fn people_read_it_as_text() {
    let lab = Lab::new();
    let ended = Ended::of(lab.command(2, &[]).arg("--plan").output().unwrap()).succeeded();
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
        assert!(ended.stdout.contains(part), "{part:?} is not in\n{}", ended.stdout);
    }
    // Whatever becomes of the rehearsal, the rest has been told.
    let place = |part: &str| ended.stdout.find(part).unwrap();
    assert!(
        place("one checkpoint  ") < place("over 8 steps")
            && place("estimates from data sheets") < place("over 8 steps")
    );
    assert!(ended.stderr.contains("rehearsal: step 10 of 10"), "{}", ended.stderr);
}

/// The trainer where a process finds no more address space than that.
fn limited(kilobytes: u64) -> Command {
    let mut command = Command::new("bash");
    // Address space that is set aside for each core says nothing about memory.
    command.env("MALLOC_ARENA_MAX", "2").env("OMP_NUM_THREADS", "1");
    command.args(["-c", &format!("ulimit -v {kilobytes}; exec \"$@\""), "bash"]).arg(trainer());
    command
}

/// As where there is less memory than the system says: the plan does without the steps.
#[test]
fn a_rehearsal_that_runs_out_of_memory_is_no_end() {
    let lab = Lab::new();
    let starts = |limit: &u64| limited(*limit).arg("--version").output().unwrap().status.success();
    let least = (300_000..).step_by(20_000).find(starts).unwrap();
    // A few pictures of this size find room there.
    let mut command = limited(least + 200_000);
    command.args(["--plan", "--log-format=json", "--config"]).arg(lab.path("tiny.yaml"));
    for value in ["data.url=synthetic:", "model.image_size=64", "batch.global=2048", "batch.micro=1024"] {
        command.args(["--set", value]);
    }
    let plan = read(&Ended::of(command.output().unwrap()));
    assert!(plan["rehearsal"].is_null() && plan["here"].is_null(), "{plan}");
    let why = plan["not_rehearsed"].as_str().unwrap();
    assert!(why.contains("memory ran out") && why.contains("set batch.micro lower"), "{why}");
    assert!(number(&plan, "/memory_per_rank/activations") > 1e9);
}

#[test]
fn what_the_eta_leaves_out_is_said() {
    let lab = Lab::new();
    let evaluating = "eval={every_epochs: 1, num_images: 50000, guidance_scale: 4.5}";
    for (overrides, parts) in [
        (&[][..], &["waiting for data", "the whole run"][..]),
        (&[evaluating][..], &["waiting for data", "the whole run", "does not evaluate yet"][..]),
    ] {
        let plan = plan(&lab, 0, overrides);
        let told = plan["eta_leaves_out"].as_array().unwrap();
        assert_eq!(told.len(), parts.len(), "{plan}");
        for (told, part) in told.iter().zip(parts) {
            assert!(told.as_str().unwrap().contains(part), "{told}");
        }
        let eta = plan["here"]["eta"].as_object().unwrap();
        assert!(eta.len() == 2 && eta.contains_key("steps") && eta.contains_key("checkpoints"), "{plan}");
        assert!(plan["not_rehearsed"].is_null() && plan["processor"] == "cpu", "{plan}");
    }
}

#[test]
fn a_wrong_configuration_is_one_line() {
    let lab = Lab::new();
    let never = "eval={every_epochs: 0, num_images: 1, guidance_scale: 1}";
    for (overrides, part) in
        [(["data.url=/nowhere"], "there is no dataset"), (["optim.ema=2"], "optim.ema"), ([never], "eval.every_epochs")]
    {
        let ended = Ended::of(lab.command(2, &overrides).arg("--plan").output().unwrap());
        assert_eq!(ended.code, Some(78), "{}\n{}", ended.stdout, ended.stderr);
        assert!(ended.error().contains(part), "{}", ended.stderr);
    }
}
