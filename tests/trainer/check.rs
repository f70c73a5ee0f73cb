//! `arinar-trainer --check`: whatever would end a run is said in its line, all of it; nothing is left behind.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
};

use arinar_collective::cuda::{Gpu, HOST_STAND_IN};
use arinar_store::{Store, lease::Lease};
use arinar_tests::support::checkpoint::Cloud;
use arinar_tests::support::trainer::{Ended, Lab, launch, trainer};
use arinar_tests::{
    gpu_stand_in::GpuStandIn,
    s3::{Fault, Faults, S3Server},
};

/// Every file below a folder with its contents, and every folder.
fn listing(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        if path.is_dir() {
            found.insert(name + "/", Vec::new());
            found.extend(listing(&path));
        } else {
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

fn check(lab: &Lab, ranks: usize, overrides: &[&str]) -> Ended {
    Ended::of(lab.command(ranks, overrides).arg("--check").output().unwrap())
}

/// The lines with this verdict; each begins with it.
fn lines<'a>(ended: &'a Ended, verdict: &str) -> Vec<&'a str> {
    ended.stdout.lines().filter(|line| line.starts_with(verdict)).collect()
}

fn well(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
    assert!(lines(ended, "PROBLEM").is_empty(), "{}", ended.stdout);
    for part in parts {
        assert!(ended.stdout.contains(part), "{part:?} is not in\n{}", ended.stdout);
    }
}

/// Exactly these problems: each a line with all of its parts; the last line counts them.
fn problems(ended: &Ended, expected: &[&[&str]]) {
    assert_eq!(ended.code, Some(78), "{}\n{}", ended.stdout, ended.stderr);
    let told = lines(ended, "PROBLEM");
    assert_eq!(told.len(), expected.len(), "{}", ended.stdout);
    for parts in expected {
        let found = told.iter().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "{parts:?} is in no line of\n{}", ended.stdout);
    }
    assert!(ended.error().contains(&format!("the check found {}", expected.len())), "{}", ended.stderr);
}

#[test]
fn all_is_well_and_nothing_is_left_behind() {
    let lab = Lab::new();
    let before = listing(lab.folder.path());
    let everything = [
        "tiny; batch 8 =",
        "48 samples in 2 shards, 3 classes",
        "shard-00000.safetensors is valid",
        "will be created",
        "no other job writes to",
        "the run starts from step 0",
        "M parameters",
        "open files ",
        "memory ",
        "Open MPI v",
        "CUDA runtime",
        "NCCL",
        "GPUs ",
    ];
    well(&check(&lab, 0, &[]), &everything);
    well(&check(&lab, 2, &[]), &[&everything[..], &["/dev/shm", "checked 2 rank(s) on"]].concat());
    assert!(listing(lab.folder.path()) == before, "something is left");
    lab.train(2, &["train.max_steps=4"]).succeeded();
    let before = listing(lab.folder.path());
    well(
        &check(&lab, 2, &[]),
        &["list, put, get and delete work", "step-00000004: step 4, epoch 0.67", "saved by 2 rank(s)"],
    );
    well(&check(&lab, 0, &["train.max_steps=4"]), &["all steps are trained already"]);
    assert!(listing(lab.folder.path()) == before, "something is left");
}

#[test]
fn in_a_bucket_nothing_is_left_behind_either() {
    let cloud = Cloud::new();
    cloud.publish_dataset();
    let cache = format!("data.cache_dir={}", cloud.lab.path("cache").display());
    let overrides = ["data.url=s3://data", cache.as_str()];
    let check = || Ended::of(cloud.command(2, &overrides).arg("--check").output().unwrap());
    let kept = || -> Vec<String> {
        let all = listing(cloud.lab.folder.path()).into_keys();
        // Folders of the server are no objects, and it keeps notes on requests in hidden files.
        all.filter(|name| !(name.contains("/s3/") && (name.ends_with('/') || name.contains("/.")))).collect()
    };
    let before = kept();
    well(&check(), &["s3://data: 48 samples", "s3://runs/tiny: list, put, get and delete work", "(will be created)"]);
    assert_eq!(kept(), before);
    Ended::of(cloud.command(2, &[&overrides[..], &["train.max_steps=4"]].concat()).output().unwrap()).succeeded();
    let before = kept();
    well(&check(), &["s3://runs/tiny/step-00000004: step 4"]);
    assert_eq!(kept(), before);
}

#[test]
fn every_problem_has_its_line_and_all_are_listed() {
    let lab = Lab::new();
    let before = listing(lab.folder.path());
    let cache = |name: &str| format!("data.cache_dir={}", lab.path(name).display());
    let (new, in_use) = (cache("cache"), cache("dataset"));
    let cases: [(&[&str], &[&[&str]]); 12] = [
        (&["data.url=/nowhere"], &[&["data.url", "there is no dataset at /nowhere"]]),
        (&["model.vae.channels=8"], &[&["data.url", "model.vae.channels is 8", "encoded with 4"]]),
        (
            &["model.vae.channels=8", "model.classes=7"],
            &[&["model.vae.channels is 8"], &["model.classes is 7", "set model.classes=3"]],
        ),
        (&["run.dir=/proc/nowhere"], &[&["run.dir", "cannot write to /proc", "set run.dir"]]),
        (&["run.log_dir=/proc/nowhere"], &[&["run.log_dir", "cannot write to /proc"]]),
        (&["data.cache_dir=/proc/nowhere"], &[&["data.cache_dir", "cannot write to /proc"]]),
        (&[&in_use], &[&["data.cache_dir", "is not empty", "set data.cache_dir"]]),
        (&[&new, "data.cache_limit=100"], &[&["data.cache_limit", "set data.cache_limit="]]),
        (&["optim.ema=1.5", "optim.epochs=0"], &[&["optim.ema: 1.5"], &["optim.epochs: 0"]]),
        (
            &["eval={every_epochs: 0, num_images: 0, guidance_scale: 4.5}"],
            &[&["eval.every_epochs: 0"], &["eval.num_images: 0"]],
        ),
        (&["batch.global=8000000"], &[&["memory", "set batch.micro="]]),
        (&["optim.epoch=3"], &[&["configuration", "unknown key \"epoch\"", "did you mean \"epochs\"?"]]),
    ];
    for (overrides, expected) in cases {
        problems(&check(&lab, 0, overrides), expected);
    }
    problems(&check(&lab, 3, &[]), &[&["configuration", "global batch 8 is not divisible by 3 ranks", "use 6 or 9"]]);
    // Of one machine's ranks one tells.
    problems(&check(&lab, 2, &["data.url=/nowhere", "run.log_dir=/proc/x"]), &[&["/nowhere"], &["run.log_dir"]]);
    assert!(listing(lab.folder.path()) == before, "something is left");
}

#[test]
fn what_is_read_by_nobody_is_noted_and_what_is_cached_is_named() {
    let lab = Lab::new();
    let cache = format!("data.cache_dir={}", lab.path("cache").display());
    let ended = check(&lab, 0, &["eval={every_epochs: 40, num_images: 100, guidance_scale: 4.5}", &cache]);
    well(&ended, &["eval is configured, but this version does not evaluate yet", "needed for the whole dataset"]);
    assert!(lines(&ended, "note").iter().any(|line| line.contains("does not evaluate yet")), "{}", ended.stdout);
    well(&check(&lab, 0, &["data.shuffle_window=0", &cache]), &["needed for the whole dataset"]);
}

/// Not a test: what the next one runs in another process, over the stand-in for CUDA.
#[test]
#[ignore = "run by another test in a process of its own"]
fn ask_a_gpu_for_its_memory() {
    let (free, all) = Gpu::open(0).unwrap().memory().unwrap();
    assert!((1..=all).contains(&free), "{free} of {all}");
}

#[test]
fn a_gpu_says_how_much_memory_it_has() {
    let stand_in = GpuStandIn::new();
    let mut child = launch(1);
    child.arg(std::env::current_exe().unwrap()).args(["--exact", "check::ask_a_gpu_for_its_memory", "--ignored"]);
    let ended = Ended::of(child.envs(stand_in.environment()).output().unwrap()).succeeded();
    assert!(ended.stdout.contains("1 passed"), "{}", ended.stdout);
}

#[test]
fn nccl_is_tried_when_all_else_has_been_told() {
    let (lab, stand_in) = (Lab::new(), GpuStandIn::new());
    let check = |faults: &str, overrides: &[&str]| {
        let mut command = lab.command(2, overrides);
        command.arg("--check").envs(stand_in.environment()).envs(stand_in.faults(faults)).env(HOST_STAND_IN, "1");
        Ended::of(command.output().unwrap())
    };
    let ended = check("", &[]);
    well(&ended, &["Open MPI v", "checked 2 rank(s) on"]);
    let last = ended.stdout.lines().next_back().unwrap();
    assert!(last.contains("collectives") && last.contains("NCCL 2."), "{}", ended.stdout);
    let ended = check("rank 1 init error", &[]);
    assert_eq!(ended.code, Some(1), "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("checked 2 rank(s) on") && !ended.stdout.contains("PROBLEM"), "{}", ended.stdout);
    assert!(ended.stderr.contains("arinar-trainer: error: NCCL, while ranks join"), "{}", ended.stderr);
    let ended = check("rank 0 call 1 error", &["optim.ema=1.5"]);
    problems(&ended, &[&["optim.ema: 1.5"]]);
    let over_nccl = |line: &str| line.contains("collectives") && line.contains("NCCL 2.");
    assert!(!ended.stdout.lines().any(over_nccl), "{}", ended.stdout);
}

#[test]
fn a_damaged_shard_and_a_checkpoint_that_does_not_fit() {
    let lab = Lab::new();
    lab.train(0, &["train.max_steps=2"]).succeeded();
    let step = "step-00000002";
    problems(&check(&lab, 0, &["seed=6"]), &[&["resume", step, "seed is 5 in the checkpoint and 6 now"]]);
    problems(&check(&lab, 2, &["model.outer.width=64"]), &[&["resume", "of another model", "model.outer.width"]]);
    problems(&check(&lab, 0, &["checkpoint.resume=none"]), &[&["resume", "already holds the checkpoint", step]]);
    std::fs::remove_file(lab.path("run/step-00000002/state.json")).unwrap();
    problems(&check(&lab, 0, &[]), &[&["resume", "none of the checkpoints", "state.json: it is missing"]]);
    std::fs::remove_dir_all(lab.path("run")).unwrap();
    for shard in ["dataset/shard-00000.safetensors", "dataset/shard-00001.safetensors"] {
        let mut bytes = std::fs::read(lab.path(shard)).unwrap();
        let place = bytes.len() - 100;
        bytes[place] ^= 4;
        std::fs::write(lab.path(shard), bytes).unwrap();
    }
    problems(&check(&lab, 0, &[]), &[&["smallest shard", "is damaged", "arinar-data verify"]]);
}

#[test]
fn a_live_run_is_named_and_keeps_its_lease() {
    let cloud = Cloud::new();
    let remote = Store::open_with("s3://runs/tiny", &cloud.environment().into_iter().collect()).unwrap();
    let local = Store::open(cloud.lab.path("run").to_str().unwrap()).unwrap();
    let parts: &[&str] = &["lease", "is being written by `arinar-trainer run tiny`", "pid", "kill"];
    let lease = Lease::acquire(&local, "arinar-trainer run tiny").unwrap();
    problems(&check(&cloud.lab, 0, &[]), &[parts]);
    lease.check().unwrap();
    drop(lease);
    assert!(local.list("").unwrap().is_empty());
    let lease = Lease::acquire(&remote, "arinar-trainer run tiny").unwrap();
    problems(&Ended::of(cloud.command(2, &[]).arg("--check").output().unwrap()), &[parts]);
    lease.check().unwrap();
    drop(lease);
    assert!(remote.list("").unwrap().is_empty());
    well(&Ended::of(cloud.command(0, &[]).arg("--check").output().unwrap()), &["no other job writes to"]);
}

#[test]
fn a_bucket_that_is_not_there_or_not_ours() {
    let cloud = Cloud::new();
    let check = |variables: &[(&str, &str)], url: &str| {
        let mut command = cloud.command(0, &[&format!("run.dir={url}")]);
        Ended::of(command.arg("--check").envs(variables.iter().copied()).output().unwrap())
    };
    problems(&check(&[], "s3://nowhere/tiny"), &[&["run.dir", "the bucket of s3://nowhere/tiny", "does not exist"]]);
    let wrong = [("AWS_SECRET_ACCESS_KEY", "wrong")];
    problems(&check(&wrong, "s3://runs/tiny"), &[&["run.dir", "is denied", "check credentials"]]);
    let gone = S3Server::start(&cloud.lab.path("other")).endpoint();
    problems(&check(&[("AWS_ENDPOINT_URL", &gone)], "s3://runs/tiny"), &[&["run.dir", "cannot be reached"]]);
}

#[test]
fn a_bucket_in_which_nothing_may_be_deleted() {
    let cloud = Cloud::new();
    // Objects are deleted by POST, and by DELETE where a store does not know that.
    cloud.server.set_faults(Faults::always(Fault::AccessDenied, &["POST", "DELETE"]));
    let ended = Ended::of(cloud.command(0, &[]).arg("--check").output().unwrap());
    problems(&ended, &[&["run.dir", "s3://runs/tiny/check-", "AccessDenied", "Delete"]]);
}

/// A folder that takes nothing any more: on a file system that is full where this user may mount one, else by a limit on
/// the size of files.
#[test]
fn a_full_disk_is_noticed_before_it_matters() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("run")).unwrap();
    let may_mount = Command::new("unshare").args(["-rm", "true"]).output().is_ok_and(|ended| ended.status.success());
    let script = match may_mount {
        true => r#"mount -t tmpfs -o size=256k none "$0" && exec "$@""#,
        false => r#"trap '' XFSZ; ulimit -f 0; exec "$@""#,
    };
    let mut command = Command::new(if may_mount { "unshare" } else { "env" });
    if may_mount {
        command.arg("-rm");
    }
    command.args(["bash", "-c", script]).arg(lab.path("run")).arg(trainer()).arg("--check");
    command.arg("--config").arg(lab.path("tiny.yaml"));
    let ended = Ended::of(command.output().unwrap());
    assert_eq!(ended.code, Some(78), "{}\n{}", ended.stdout, ended.stderr);
    let told = lines(&ended, "PROBLEM");
    assert!(told.iter().any(|line| line.contains("run.dir")), "{}", ended.stdout);
    if may_mount {
        let parts = ["needed for its checkpoints", "the disk has", "make room"];
        assert!(told.len() == 1 && parts.iter().all(|part| told[0].contains(part)), "{}", ended.stdout);
    }
}

#[test]
fn findings_come_as_json_too() {
    let lab = Lab::new();
    let mut command = launch(2);
    command.arg(trainer()).args(["--check", "--log-format", "json", "--config"]).arg(lab.path("tiny.yaml"));
    let ended = Ended::of(command.args(["--set", "data.url=/nowhere"]).stdin(Stdio::null()).output().unwrap());
    assert_eq!(ended.code, Some(78), "{}\n{}", ended.stdout, ended.stderr);
    let findings: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let problem = findings.iter().find(|finding| finding["verdict"] == "problem").unwrap();
    assert_eq!(problem["what"], "data.url");
    assert!(findings.iter().any(|finding| finding["what"] == "MPI" && finding["verdict"] == "ok"));
}

#[test]
fn the_launcher_hands_it_on() {
    let lab = Lab::new();
    let before = listing(lab.folder.path());
    let launched = |arguments: &[&str]| {
        let mut command = Command::new(trainer().with_file_name("arinar-launcher"));
        command.arg("--config").arg(lab.path("tiny.yaml")).args(["--nproc", "2"]).args(arguments);
        Ended::of(command.output().unwrap())
    };
    well(&launched(&["--", "--check"]), &["tiny; batch 8 = 2 rank(s)", "checked 2 rank(s) on"]);
    problems(&launched(&["--set", "data.url=/nowhere", "--", "--check"]), &[&["data.url", "/nowhere"]]);
    // What keeps the launcher from starting ranks is told as fully.
    let wrong = ["--set", "optim.ema=1.5", "--set", "optim.epochs=0"];
    problems(&launched(&[&wrong[..], &["--", "--check"]].concat()), &[&["optim.ema: 1.5"], &["optim.epochs: 0"]]);
    for arguments in [&[&["--dry-run"][..], &wrong[..], &["--", "--check"]].concat()[..], &["--", "--chek"]] {
        let ended = launched(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(78), ""), "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        let part =
            if arguments.len() > 2 { "optim.epochs" } else { "arinar-trainer: unexpected argument '--chek' found" };
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
    assert!(launched(&["--", "--plan"]).succeeded().stdout.contains("plan of run tiny: 2 rank(s)"));
    assert!(listing(lab.folder.path()) == before, "something is left");
}

#[test]
fn it_does_not_go_with_what_trains_or_exports() {
    let lab = Lab::new();
    for arguments in [["--check", "--plan"], ["--check", "--import=x.pth"], ["--plan", "--import=x.pth"]] {
        let ended = Ended::of(lab.command(0, &[]).args(arguments).output().unwrap());
        assert_eq!(ended.code, Some(78), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("cannot be used with"), "{}", ended.stderr);
    }
}
