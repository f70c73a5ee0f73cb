//! A run whose folder is in an S3 store: what the network, the store, the disk and kill -9 do to its checkpoints.
#![allow(clippy::unwrap_used)]

use std::{process::Command, time::Duration};

use arinar_model::vae::{AutoencoderKl, VaeConfig, save_vae};
use arinar_protocol::exit_code;
use arinar_store::Store;
use arinar_tests::s3::{Fault, Faults};
use arinar_tests::support::checkpoint::{Cloud, RUN, files, wait_for};
use arinar_tests::support::trainer::{Ended, Lab, trainer};
use tch::{Device, nn};

fn down() -> Faults {
    Faults { down: true, ..Faults::default() }
}

#[test]
fn a_run_goes_on_from_the_bucket_alone_with_the_same_bits() {
    let (whole, cloud) = (Lab::new(), Cloud::new());
    whole.train(2, &["train.max_steps=12"]).succeeded();
    for steps in ["train.max_steps=4", "train.max_steps=8", "train.max_steps=12"] {
        cloud.new_machine();
        cloud.train(2, &[steps, "checkpoint.every=3", "checkpoint.keep_last=2"]).succeeded();
        cloud.check_manifests();
    }
    assert_eq!(cloud.stored(), ["step-00000009", "step-00000012"]);
    assert!(whole.tensors("run/step-00000012") == cloud.lab.tensors(&format!("{RUN}/step-00000012")));
    // Nothing else is left: no marker in the store, the newest checkpoint in the spool.
    for name in ["step-00000003", "step-00000004", "step-00000006", "step-00000008"] {
        assert!(files(&cloud.lab.path(&format!("{RUN}/{name}"))).is_empty(), "{name}");
    }
    let local = files(&whole.path("run/step-00000012"));
    assert_eq!(files(&cloud.lab.path(&format!("{RUN}/step-00000012"))), local);
    assert_eq!(files(&cloud.spool()), ["step-00000012"]);
    // The curves of all three machines are in the bucket, and are those of one run.
    let curve = cloud.lab.curve(&format!("{RUN}/logs"), "train_loss");
    assert_eq!(curve, whole.curve("logs", "train_loss"));
    // On the same machine the spool's copy saves the download.
    let again = cloud.train(2, &["train.max_steps=13"]).succeeded();
    assert!(again.stdout.contains("step-00000012 (its copy in the spool)"), "{}", again.stdout);
}

#[test]
fn a_run_goes_on_from_the_bucket_at_another_world_size() {
    let (whole, cloud) = (Lab::new(), Cloud::new());
    let steps = |steps: u64| format!("train.max_steps={steps}");
    let (calm, batch) = ("model.outer.dropout=0", "batch.global=6");
    whole.train(0, &[calm, batch, &steps(9)]).succeeded();
    for (ranks, until) in [(2, 3), (1, 6), (3, 9)] {
        cloud.new_machine();
        cloud.train(ranks, &[calm, batch, &steps(until)]).succeeded();
    }
    let (whole, parts) = (whole.curve("logs", "train_loss"), cloud.lab.curve(&format!("{RUN}/logs"), "train_loss"));
    assert_eq!((whole.len(), parts.len()), (9, 9));
    for (step, loss) in &whole {
        assert!((parts[step] - loss).abs() < 1e-5 * loss.abs().max(1.0), "step {step}");
    }
}

#[test]
fn a_store_that_is_down_stops_nothing() {
    let cloud = Cloud::impatient();
    let mut run = cloud.start(2, &["train.max_steps=1000000", "checkpoint.every=20 steps", "checkpoint.keep_last=3"]);
    run.until("uploaded step-");
    cloud.server.set_faults(down());
    let told = run.until("cannot be reached since");
    for part in ["s3://runs/tiny cannot be reached", "checkpoint", "wait", "training goes on"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    run.until("saved step-");
    let saved = run.until("saved step-");
    cloud.server.set_faults(Faults::default());
    run.until("can be reached again after");
    run.until("uploaded step-");
    run.signal("-TERM");
    let ended = run.ended();
    assert_eq!(ended.code, Some(i32::from(exit_code::PREEMPTED)), "{}", ended.stderr);
    // Told when it begins and when it ends, and not in between. On a busy machine the store may seem gone once more.
    let told = |part: &str| ended.stdout.matches(part).count();
    assert_eq!(told("cannot be reached since"), told("can be reached again after"), "{}", ended.stdout);
    // Everything that should be there has arrived, the checkpoint of the end among it.
    let stored = cloud.stored();
    assert_eq!(stored.len(), 3, "{stored:?}");
    let newest = arinar_checkpoint::step_of(stored.last().unwrap()).unwrap();
    assert!(ended.stderr.contains(&format!("after saving step {newest}")), "{stored:?}: {}", ended.stderr);
    assert!(stored.last().unwrap().as_str() > saved.trim_start_matches("saved "), "{saved} {stored:?}");
    cloud.check_manifests();
    let reachable = cloud.lab.curve("logs", "store_reachable");
    assert!(reachable.values().any(|value| *value == 0.0) && reachable.values().any(|value| *value == 1.0));
    let backlog = cloud.lab.curve("logs", "checkpoint_backlog_bytes");
    assert!(backlog.values().any(|bytes| *bytes > 0.0));
}

#[test]
fn a_full_spool_ends_the_run_in_one_line_and_nothing_is_lost() {
    let cloud = Cloud::impatient();
    let mut run =
        cloud.start(2, &["train.max_steps=1000000", "checkpoint.every=10 steps", "checkpoint.spool_limit=3MB"]);
    run.until("uploaded step-");
    cloud.server.set_faults(down());
    let ended = run.ended();
    assert_eq!(ended.code, Some(i32::from(exit_code::FAILED)), "{}", ended.stderr);
    for part in ["checkpoint.spool_limit is 3.00 MB", "checkpoint", "for s3://runs/tiny", "nothing saved is lost"] {
        assert!(ended.error().contains(part), "{part:?} is not in {}", ended.error());
    }
    let spooled: Vec<String> = files(&cloud.spool());
    let newest = spooled.last().unwrap().clone();
    cloud.server.set_faults(Faults::default());
    let step = arinar_checkpoint::step_of(&newest).unwrap();
    let again = cloud.train(2, &[&format!("train.max_steps={}", step + 1), "checkpoint.spool_limit=3MB"]).succeeded();
    assert!(again.stdout.contains(&format!("{newest} (its copy in the spool)")), "{}", again.stdout);
    // What retention keeps has arrived: three, of which the last is new.
    let kept = [&spooled[spooled.len() - 2..], &[format!("step-{:08}", step + 1)]].concat();
    assert_eq!(cloud.stored(), kept, "{}", again.stdout);
    cloud.check_manifests();
}

#[test]
fn an_end_that_cannot_upload_says_where_the_checkpoint_lies() {
    let cloud = Cloud::impatient();
    // Down for the last checkpoint.
    let gone = Faults::always(Fault::InternalError, &["PUT"]);
    cloud.server.set_faults(Faults { prefix: "runs/tiny/step-00000060".to_owned(), ..gone });
    let ended = cloud.train(2, &["train.max_steps=60", "checkpoint.upload_timeout=2s"]);
    assert_eq!(ended.code, Some(i32::from(exit_code::FAILED)), "{}", ended.stderr);
    let spool = cloud.spool().display().to_string();
    for part in ["not everything is in s3://runs/tiny after 2s", "checkpoint.upload_timeout", &spool] {
        assert!(ended.error().contains(part), "{part:?} is not in {}", ended.error());
    }
    assert_eq!(files(&cloud.spool()), ["step-00000060"]);
    assert!(cloud.stored().is_empty());
    // Started again, all it has to do is to send it on.
    cloud.server.set_faults(Faults::default());
    let again = cloud.train(2, &["train.max_steps=60"]).succeeded();
    assert!(again.stdout.contains("all 60 steps are trained already"), "{}", again.stdout);
    assert_eq!(cloud.stored(), ["step-00000060"]);
    cloud.check_manifests();
}

#[test]
fn killed_while_uploading_it_is_sent_on() {
    let cloud = Cloud::new();
    let optimizer = "runs/tiny/step-00000005/optimizer-00002";
    let stall = Fault::Stall(Duration::from_secs(3600));
    cloud.server.set_faults(Faults { prefix: optimizer.to_owned(), ..Faults::always(stall, &["PUT"]) });
    let mut run = cloud.start(2, &["train.max_steps=1000000", "checkpoint.every=5 steps", "checkpoint.keep_last=9"]);
    run.until("saved step-00000005");
    let sent = cloud.lab.path(&format!("{RUN}/step-00000005/uploaded-00001-of-00002.json"));
    wait_for("rank 0 to send its part", || sent.exists());
    run.signal("-9");
    assert_ne!(run.ended().code, Some(0));
    assert!(cloud.stored().is_empty(), "{:?}", cloud.stored());
    let mut spooled = cloud.lab.checkpoints(cloud.spool().strip_prefix(cloud.lab.path("")).unwrap().to_str().unwrap());
    cloud.server.set_faults(Faults::default());
    cloud.server.reset_counters();
    let newest = arinar_checkpoint::step_of(spooled.last().unwrap()).unwrap();
    let last = format!("train.max_steps={}", newest + 1);
    let again = cloud.train(2, &[&last, "checkpoint.keep_last=9"]).succeeded();
    assert!(again.stdout.contains(&format!("step-{newest:08} (its copy in the spool)")), "{}", again.stdout);
    spooled.push(format!("step-{:08}", newest + 1));
    // How far it came before it was killed is a matter of time; the newest nine stay.
    assert_eq!(cloud.stored(), spooled[spooled.len().saturating_sub(9)..]);
    cloud.check_manifests();
}

#[test]
fn a_damaged_checkpoint_in_the_bucket_is_passed_over() {
    let cloud = Cloud::new();
    let steps = ["train.max_steps=6", "checkpoint.every=3"];
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
fn a_store_out_of_reach_is_no_reason_to_begin_anew() {
    let cloud = Cloud::impatient();
    cloud.train(0, &["train.max_steps=6", "checkpoint.every=3"]).succeeded();
    cloud.new_machine();
    let gone = Faults { prefix: "runs/tiny/step-00000006/ema".to_owned(), ..Faults::always(Fault::InternalError, &[]) };
    cloud.server.set_faults(gone);
    let ended = cloud.train(0, &["train.max_steps=7"]);
    assert_eq!(ended.code, Some(i32::from(exit_code::FAILED)), "{}", ended.stdout);
    assert!(ended.error().contains("s3://runs/tiny/step-00000006/ema"), "{}", ended.error());
    cloud.server.set_faults(Faults::default());
    let again = cloud.train(0, &["train.max_steps=7"]).succeeded();
    assert!(again.stdout.contains("resuming from s3://runs/tiny/step-00000006"), "{}", again.stdout);
}

#[test]
fn two_trainers_on_one_run_are_kept_apart() {
    let cloud = Cloud::new();
    let endless = ["train.max_steps=1000000", "checkpoint.every=20 steps"];
    let mut first = cloud.start(2, &endless);
    first.until("uploaded step-");
    let second = cloud.train(2, &endless);
    assert_eq!(second.code, Some(i32::from(exit_code::FAILED)), "{}", second.stderr);
    for part in ["s3://runs/tiny", "arinar-trainer run tiny"] {
        assert!(second.error().contains(part), "{part:?} is not in {}", second.error());
    }
    first.until("uploaded step-");
    first.signal("-9");
    assert_ne!(first.ended().code, Some(0));
    // Its lease died with it: a launcher need not wait.
    let newest = arinar_checkpoint::step_of(cloud.stored().last().unwrap()).unwrap();
    cloud.train(2, &[&format!("train.max_steps={}", newest + 40)]).succeeded();
    cloud.check_manifests();
}

/// Another machine takes over the lease, as it may when this one has been silent for too long.
fn take_lease_elsewhere(cloud: &Cloud) {
    let store = Store::open_with("s3://runs/tiny", &cloud.environment().into_iter().collect()).unwrap();
    let mut holder: serde_json::Value = serde_json::from_slice(&store.get("writer.json").unwrap()).unwrap();
    for (name, value) in [("host", "far-away"), ("boot_id", "elsewhere"), ("nonce", "another")] {
        holder[name] = value.into();
    }
    store.put("writer.json", holder.to_string()).unwrap();
}

#[test]
fn a_run_whose_lease_was_taken_makes_no_checkpoint_valid() {
    let cloud = Cloud::new();
    // A file of the checkpoint cannot be sent before the lease is gone, so the manifest's turn comes after.
    let failing = Faults::always(Fault::InternalError, &["PUT"]);
    cloud.server.set_faults(Faults { prefix: "runs/tiny/step-00000005/optimizer".to_owned(), ..failing });
    let run = cloud.start(0, &["train.max_steps=5"]);
    wait_for("the checkpoint to be sent", || cloud.server.counters().faults() > 0);
    take_lease_elsewhere(&cloud);
    cloud.server.set_faults(Faults::default());
    let ended = run.ended();
    assert!(cloud.stored().is_empty(), "{:?}\n{}", cloud.stored(), ended.stdout);
    assert_eq!(ended.code, Some(i32::from(exit_code::FAILED)), "{}", ended.stderr);
    for part in ["s3://runs/tiny is now being written by", "far-away"] {
        assert!(ended.error().contains(part), "{part:?} is not in {}", ended.error());
    }
    // All else was sent, and the lease is still the other's.
    assert!(cloud.lab.path(&format!("{RUN}/step-00000005/uploaded-00001-of-00001.json")).exists());
    let holder = std::fs::read_to_string(cloud.lab.path(&format!("{RUN}/writer.json"))).unwrap();
    assert!(holder.contains("far-away"), "{holder}");
}

#[test]
fn sampling_needs_no_local_file() {
    let cloud = Cloud::new();
    cloud.train(0, &["train.max_steps=2"]).succeeded();
    let _generator = arinar_tests::reference::generator();
    tch::manual_seed(1);
    let config = VaeConfig { ch: 32, ch_mult: vec![1, 1, 1], num_res_blocks: 1, embed_dim: 4 };
    let store = nn::VarStore::new(Device::Cpu);
    let _vae = AutoencoderKl::new(&store.root(), &config);
    save_vae(&cloud.lab.path("s3/runs/vae.safetensors"), &store, &config, 0.5, &[]).unwrap();
    let mut command = Command::new(trainer().with_file_name("arinar-sample"));
    command.args([
        "--run",
        "s3://runs/tiny",
        "--vae",
        "s3://runs/vae.safetensors",
        "--out",
        "s3://runs/pictures/of it",
    ]);
    command.args(["--threads", "1", "--classes", "two", "--per-class", "1", "--steps", "2"]).envs(cloud.environment());
    let ended = Ended::of(command.output().unwrap()).succeeded();
    assert!(ended.stdout.contains("grid: s3://runs/pictures/of it/grid.png"), "{}", ended.stdout);
    let out = cloud.lab.path("s3/runs/pictures/of it");
    assert_eq!(files(&out), ["0001-two-000.png", "grid.png"]);
    assert_eq!(image::open(out.join("0001-two-000.png")).unwrap().width(), 16);
}
