//! Tests of runs that store checkpoints in S3: failures of the network, the store and the disk, and SIGKILL.
#![allow(clippy::unwrap_used)]

use std::{process::Command, time::Duration};

use arinar_model::vae::{AutoencoderKl, VaeConfig, save_vae};
use arinar_protocol::exit_code;
use arinar_store::Store;
use arinar_tests::s3::{Fault, Faults};
use arinar_tests::support::checkpoint::{Cloud, RUN, files, wait_for};
use arinar_tests::support::trainer::{Lab, ProcessOutput, trainer};
use tch::{Device, nn};

fn store_down() -> Faults {
    Faults { down: true, ..Faults::default() }
}

#[test]
fn a_run_resumes_bit_identically_from_the_bucket_alone() {
    let (whole, cloud) = (Lab::new(), Cloud::new());
    whole.train(2, &["train.max_steps=12"]).succeeded();
    for steps in ["train.max_steps=4", "train.max_steps=8", "train.max_steps=12"] {
        cloud.new_machine();
        cloud.train(2, &[steps, "checkpoint.every=3 steps", "checkpoint.keep_last=2"]).succeeded();
        cloud.check_manifests();
    }
    assert_eq!(cloud.stored(), ["step-00000009", "step-00000012"]);
    assert!(whole.tensors("run/step-00000012") == cloud.lab.tensors(&format!("{RUN}/step-00000012")));
    // Nothing else is left: no markers in the store, and only the newest checkpoint in the spool.
    for name in ["step-00000003", "step-00000004", "step-00000006", "step-00000008"] {
        assert!(files(&cloud.lab.path(&format!("{RUN}/{name}"))).is_empty(), "{name}");
    }
    let local = files(&whole.path("run/step-00000012"));
    assert_eq!(files(&cloud.lab.path(&format!("{RUN}/step-00000012"))), local);
    assert_eq!(files(&cloud.spool()), ["step-00000012"]);
    // The curves of all three machines are in the bucket and equal those of a single run.
    let curve = cloud.lab.curve(&format!("{RUN}/logs"), "train_loss");
    assert_eq!(curve, whole.curve("logs", "train_loss"));
    // On the same machine, the copy in the spool avoids the download.
    let again = cloud.train(2, &["train.max_steps=13"]).succeeded();
    assert!(again.stdout.contains("step-00000012 (its copy in the spool)"), "{}", again.stdout);
}

#[test]
fn a_run_resumes_from_the_bucket_at_another_world_size() {
    let (whole, cloud) = (Lab::new(), Cloud::new());
    let steps = |steps: u64| format!("train.max_steps={steps}");
    let (no_dropout, batch) = ("model.outer.dropout=0", "batch.global=6");
    whole.train(0, &[no_dropout, batch, &steps(9)]).succeeded();
    for (ranks, until) in [(2, 3), (1, 6), (3, 9)] {
        cloud.new_machine();
        cloud.train(ranks, &[no_dropout, batch, &steps(until)]).succeeded();
    }
    let (whole, parts) = (whole.curve("logs", "train_loss"), cloud.lab.curve(&format!("{RUN}/logs"), "train_loss"));
    assert_eq!((whole.len(), parts.len()), (9, 9));
    for (step, loss) in &whole {
        assert!((parts[step] - loss).abs() < 1e-5 * loss.abs().max(1.0), "step {step}");
    }
}

#[test]
fn training_continues_while_the_store_is_down() {
    let cloud = Cloud::with_short_timeout();
    let mut run = cloud.start(2, &["train.max_steps=1000000", "checkpoint.every=20 steps", "checkpoint.keep_last=3"]);
    run.wait_for_line("uploaded step-");
    cloud.server.set_faults(store_down());
    let line = run.wait_for_line("cannot be reached since");
    for part in ["s3://runs/tiny cannot be reached", "checkpoint", "wait", "training continues"] {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    run.wait_for_line("saved step-");
    let saved = run.wait_for_line("saved step-");
    cloud.server.set_faults(Faults::default());
    run.wait_for_line("can be reached again after");
    run.wait_for_line("uploaded step-");
    run.signal("-TERM");
    let output = run.wait();
    assert_eq!(output.code, Some(i32::from(exit_code::PREEMPTED)), "{}", output.stderr);
    // Each outage is reported once at its start and once at its end. On a busy machine, there may be another one.
    let reports = |part: &str| output.stdout.matches(part).count();
    assert_eq!(reports("cannot be reached since"), reports("can be reached again after"), "{}", output.stdout);
    // All checkpoints that retention keeps were uploaded, including the final one.
    let stored = cloud.stored();
    assert_eq!(stored.len(), 3, "{stored:?}");
    let newest = arinar_checkpoint::step_of(stored.last().unwrap()).unwrap();
    assert!(output.stderr.contains(&format!("after saving step {newest}")), "{stored:?}: {}", output.stderr);
    assert!(stored.last().unwrap().as_str() > saved.trim_start_matches("saved "), "{saved} {stored:?}");
    cloud.check_manifests();
    let reachable = cloud.lab.curve("logs", "store_reachable");
    assert!(reachable.values().any(|value| *value == 0.0) && reachable.values().any(|value| *value == 1.0));
    let backlog = cloud.lab.curve("logs", "checkpoint_backlog_bytes");
    assert!(backlog.values().any(|bytes| *bytes > 0.0));
}

#[test]
fn a_full_spool_ends_the_run_without_losing_checkpoints() {
    let cloud = Cloud::with_short_timeout();
    let mut run =
        cloud.start(2, &["train.max_steps=1000000", "checkpoint.every=10 steps", "checkpoint.spool_limit=3MB"]);
    run.wait_for_line("uploaded step-");
    cloud.server.set_faults(store_down());
    let output = run.wait();
    assert_eq!(output.code, Some(i32::from(exit_code::FAILED)), "{}", output.stderr);
    for part in ["checkpoint.spool_limit is 3.00 MB", "checkpoint", "for s3://runs/tiny", "nothing saved is lost"] {
        assert!(output.error().contains(part), "{part:?} is not in {}", output.error());
    }
    let spooled: Vec<String> = files(&cloud.spool());
    let newest = spooled.last().unwrap().clone();
    cloud.server.set_faults(Faults::default());
    let step = arinar_checkpoint::step_of(&newest).unwrap();
    let again = cloud.train(2, &[&format!("train.max_steps={}", step + 1), "checkpoint.spool_limit=3MB"]).succeeded();
    assert!(again.stdout.contains(&format!("{newest} (its copy in the spool)")), "{}", again.stdout);
    // The three checkpoints that retention keeps were uploaded; the last of them is new.
    let kept = [&spooled[spooled.len() - 2..], &[format!("step-{:08}", step + 1)]].concat();
    assert_eq!(cloud.stored(), kept, "{}", again.stdout);
    cloud.check_manifests();
}

#[test]
fn a_failed_final_upload_reports_where_the_checkpoint_is() {
    let cloud = Cloud::with_short_timeout();
    // The store fails for the last checkpoint.
    let gone = Faults::always(Fault::InternalError, &["PUT"]);
    cloud.server.set_faults(Faults { prefix: "runs/tiny/step-00000060".to_owned(), ..gone });
    let output = cloud.train(2, &["train.max_steps=60", "checkpoint.upload_timeout=2s"]);
    assert_eq!(output.code, Some(i32::from(exit_code::FAILED)), "{}", output.stderr);
    let spool = cloud.spool().display().to_string();
    for part in ["not everything is in s3://runs/tiny after 2s", "checkpoint.upload_timeout", &spool] {
        assert!(output.error().contains(part), "{part:?} is not in {}", output.error());
    }
    assert_eq!(files(&cloud.spool()), ["step-00000060"]);
    assert!(cloud.stored().is_empty());
    // The next start only has to upload the checkpoint.
    cloud.server.set_faults(Faults::default());
    let again = cloud.train(2, &["train.max_steps=60"]).succeeded();
    assert!(again.stdout.contains("all 60 steps are trained already"), "{}", again.stdout);
    assert_eq!(cloud.stored(), ["step-00000060"]);
    cloud.check_manifests();
}

#[test]
fn an_upload_interrupted_by_a_kill_is_completed_later() {
    let cloud = Cloud::new();
    let optimizer = "runs/tiny/step-00000005/optimizer-00002";
    let stall = Fault::Stall(Duration::from_secs(3600));
    cloud.server.set_faults(Faults { prefix: optimizer.to_owned(), ..Faults::always(stall, &["PUT"]) });
    let mut run = cloud.start(2, &["train.max_steps=1000000", "checkpoint.every=5 steps", "checkpoint.keep_last=9"]);
    run.wait_for_line("saved step-00000005");
    let uploaded = cloud.lab.path(&format!("{RUN}/step-00000005/uploaded-00001-of-00002.json"));
    wait_for("rank 0 to upload its part", || uploaded.exists());
    run.signal("-9");
    assert_ne!(run.wait().code, Some(0));
    assert!(cloud.stored().is_empty(), "{:?}", cloud.stored());
    let mut spooled = cloud.lab.checkpoints(cloud.spool().strip_prefix(cloud.lab.path("")).unwrap().to_str().unwrap());
    cloud.server.set_faults(Faults::default());
    cloud.server.reset_counters();
    let newest = arinar_checkpoint::step_of(spooled.last().unwrap()).unwrap();
    let last = format!("train.max_steps={}", newest + 1);
    let again = cloud.train(2, &[&last, "checkpoint.keep_last=9"]).succeeded();
    assert!(again.stdout.contains(&format!("step-{newest:08} (its copy in the spool)")), "{}", again.stdout);
    spooled.push(format!("step-{:08}", newest + 1));
    // The number of steps before the kill depends on timing; retention keeps the newest nine checkpoints.
    assert_eq!(cloud.stored(), spooled[spooled.len().saturating_sub(9)..]);
    cloud.check_manifests();
}

#[test]
fn a_damaged_checkpoint_in_the_bucket_is_skipped() {
    let cloud = Cloud::new();
    let steps = ["train.max_steps=6", "checkpoint.every=3 steps"];
    cloud.train(2, &steps).succeeded();
    let whole = cloud.lab.tensors(&format!("{RUN}/step-00000006"));
    let file = cloud.lab.path(&format!("{RUN}/step-00000006/ema-00002-of-00002.safetensors"));
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    cloud.new_machine();
    let again = cloud.train(2, &steps).succeeded();
    let warning = "warning: damaged checkpoint: s3://runs/tiny/step-00000006/ema-00002-of-00002.safetensors";
    assert!(again.stdout.contains(warning), "{}", again.stdout);
    assert!(again.stdout.contains("resuming from s3://runs/tiny/step-00000003"), "{}", again.stdout);
    assert!(cloud.lab.tensors(&format!("{RUN}/step-00000006")) == whole);
}

#[test]
fn an_unreachable_store_does_not_restart_training_from_scratch() {
    let cloud = Cloud::with_short_timeout();
    cloud.train(0, &["train.max_steps=6", "checkpoint.every=3 steps"]).succeeded();
    cloud.new_machine();
    let gone = Faults { prefix: "runs/tiny/step-00000006/ema".to_owned(), ..Faults::always(Fault::InternalError, &[]) };
    cloud.server.set_faults(gone);
    let output = cloud.train(0, &["train.max_steps=7"]);
    assert_eq!(output.code, Some(i32::from(exit_code::FAILED)), "{}", output.stdout);
    assert!(output.error().contains("s3://runs/tiny/step-00000006/ema"), "{}", output.error());
    cloud.server.set_faults(Faults::default());
    let again = cloud.train(0, &["train.max_steps=7"]).succeeded();
    assert!(again.stdout.contains("resuming from s3://runs/tiny/step-00000006"), "{}", again.stdout);
}

#[test]
fn only_one_trainer_may_write_to_a_run() {
    let cloud = Cloud::new();
    let endless = ["train.max_steps=1000000", "checkpoint.every=20 steps"];
    let mut first = cloud.start(2, &endless);
    first.wait_for_line("uploaded step-");
    let second = cloud.train(2, &endless);
    assert_eq!(second.code, Some(i32::from(exit_code::FAILED)), "{}", second.stderr);
    for part in ["s3://runs/tiny", "arinar-trainer run tiny"] {
        assert!(second.error().contains(part), "{part:?} is not in {}", second.error());
    }
    first.wait_for_line("uploaded step-");
    first.signal("-9");
    assert_ne!(first.wait().code, Some(0));
    // The lease of a dead process is free at once, so that a launcher need not wait.
    let newest = arinar_checkpoint::step_of(cloud.stored().last().unwrap()).unwrap();
    cloud.train(2, &[&format!("train.max_steps={}", newest + 40)]).succeeded();
    cloud.check_manifests();
}

/// Takes over the lease like another machine, which may do so if the holder has been silent for too long.
fn take_lease_elsewhere(cloud: &Cloud) {
    let store = Store::open_with("s3://runs/tiny", &cloud.environment().into_iter().collect()).unwrap();
    let mut holder: serde_json::Value = serde_json::from_slice(&store.get("writer.json").unwrap()).unwrap();
    for (name, value) in [("host", "far-away"), ("boot_id", "elsewhere"), ("nonce", "another")] {
        holder[name] = value.into();
    }
    store.put("writer.json", holder.to_string()).unwrap();
}

#[test]
fn a_run_that_lost_its_lease_commits_no_checkpoint() {
    let cloud = Cloud::new();
    // One file of the checkpoint cannot be uploaded until the lease is lost, so the manifest would come after that.
    let failing = Faults::always(Fault::InternalError, &["PUT"]);
    cloud.server.set_faults(Faults { prefix: "runs/tiny/step-00000005/optimizer".to_owned(), ..failing });
    let run = cloud.start(0, &["train.max_steps=5"]);
    wait_for("the upload of the checkpoint", || cloud.server.counters().faults() > 0);
    take_lease_elsewhere(&cloud);
    cloud.server.set_faults(Faults::default());
    let output = run.wait();
    assert!(cloud.stored().is_empty(), "{:?}\n{}", cloud.stored(), output.stdout);
    assert_eq!(output.code, Some(i32::from(exit_code::FAILED)), "{}", output.stderr);
    for part in ["s3://runs/tiny is now being written by", "far-away"] {
        assert!(output.error().contains(part), "{part:?} is not in {}", output.error());
    }
    // Everything else was uploaded, and the other machine still holds the lease.
    assert!(cloud.lab.path(&format!("{RUN}/step-00000005/uploaded-00001-of-00001.json")).exists());
    let holder = std::fs::read_to_string(cloud.lab.path(&format!("{RUN}/writer.json"))).unwrap();
    assert!(holder.contains("far-away"), "{holder}");
}

#[test]
fn sampling_needs_no_local_files() {
    let cloud = Cloud::new();
    cloud.train(0, &["train.max_steps=2"]).succeeded();
    let _generator = arinar_tests::reference::generator();
    tch::manual_seed(1);
    let config = VaeConfig { ch: 32, ch_mult: vec![1, 1, 1], num_res_blocks: 1, embed_dim: 4 };
    let store = nn::VarStore::new(Device::Cpu);
    let _vae = AutoencoderKl::new(&store.root(), &config);
    save_vae(&cloud.lab.path("s3/runs/vae.safetensors"), &store, &config, 0.5, &[]).unwrap();
    let mut command = Command::new(trainer().with_file_name("arinar-sample"));
    command.args(["--run", "s3://runs/tiny", "--vae", "s3://runs/vae.safetensors", "--out", "s3://runs/images/of it"]);
    command.args(["--threads", "1", "--classes", "two", "--per-class", "1", "--steps", "2"]).envs(cloud.environment());
    let output = ProcessOutput::of(command.output().unwrap()).succeeded();
    assert!(output.stdout.contains("grid: s3://runs/images/of it/grid.png"), "{}", output.stdout);
    let out = cloud.lab.path("s3/runs/images/of it");
    assert_eq!(files(&out), ["0001-two-000.png", "grid.png"]);
    assert_eq!(image::open(out.join("0001-two-000.png")).unwrap().width(), 16);
}

#[test]
fn event_files_of_another_machine_precede_those_of_this_one() {
    let cloud = Cloud::new();
    cloud.train(0, &["train.max_steps=2"]).succeeded();
    let store = Store::open_with("s3://runs/tiny", &cloud.environment().into_iter().collect()).unwrap();
    let files = || -> Vec<String> { store.list("logs").unwrap().into_iter().map(|object| object.name).collect() };
    // The clock of the first machine is ahead.
    let ahead = "logs/events.out.tfevents.3900000000.000000001.0.arinar";
    let first = files().pop().unwrap();
    store.put(ahead, store.get(&first).unwrap()).unwrap();
    store.delete(&first).unwrap();
    cloud.new_machine();
    cloud.train(0, &["train.max_steps=4"]).succeeded();
    let mut names = files();
    names.sort();
    assert!(names.len() == 2 && names[0] == ahead, "{names:?}");
}
