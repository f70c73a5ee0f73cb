//! Tests that the programs delete and replace only their own files. Each test puts a user's file in the way and checks
//! that it is unchanged.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use arinar_model::vae::{AutoencoderKl, VaeConfig, save_vae};
use arinar_tests::support::checkpoint::{Cloud, RUN};
use arinar_tests::support::data::{arinar_data, exit_status, picture_tree, succeeded, text, tiny_vae};
use arinar_tests::support::trainer::{Lab, ProcessOutput, trainer};
use tch::{Device, nn};

/// Contents of a user's file.
const USER_DATA: &str = "years of work";

/// Writes a user's file and creates its parent folders.
fn write_user_file(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, USER_DATA).unwrap();
}

fn assert_unchanged(path: &Path) {
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), USER_DATA, "{}", path.display());
}

/// Returns all files below a folder with their contents, and links with their targets.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap().file_type();
        if kind.is_dir() {
            files.extend(tree(&path));
        } else if kind.is_symlink() {
            files.insert(path.clone(), std::fs::read_link(&path).unwrap().to_str().unwrap().into());
        } else {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    files
}

/// Asserts exit code 78 and a one-line error with all of the parts.
fn assert_refused(output: &ProcessOutput, parts: &[&str]) {
    assert_eq!(output.code, Some(78), "{}\n{}", output.stdout, output.stderr);
    for part in parts {
        assert!(output.error().contains(part), "{part:?} is not in {}", output.error());
    }
}

/// Asserts that `--check` reports the problem, too.
fn assert_found_by_check(lab: &Lab, overrides: &[&str], parts: &[&str]) {
    let mut command = lab.command(0, overrides);
    let output = ProcessOutput::of(command.arg("--check").output().unwrap());
    assert_eq!(output.code, Some(78), "{}\n{}", output.stdout, output.stderr);
    let line = output.stdout.lines().find(|line| parts.iter().all(|part| line.contains(part)));
    assert!(line.is_some(), "{parts:?} are in no line of {}", output.stdout);
}

// ---- the cache of shards ----------------------------------------------------------------------------

/// The scenario of a past bug: a home folder is configured as the cache, and the limit has room for few shards.
#[test]
fn a_home_folder_is_not_used_as_a_cache() {
    let cloud = Cloud::new();
    cloud.publish_dataset();
    let home = cloud.lab.path("home");
    write_user_file(&home.join(".ssh/id_rsa"));
    write_user_file(&home.join("docs/thesis.pdf"));
    let before = tree(&home);
    let cache = format!("data.cache_dir={}", home.display());
    let overrides = ["data.url=s3://data", &cache, "data.cache_limit=100KB", "train.max_steps=25"];
    let parts = ["home", "is not empty", "data.cache_dir", "new or empty folder"];
    for ranks in [0, 2] {
        assert_refused(&cloud.train(ranks, &overrides), &parts);
        assert_eq!(tree(&home), before);
    }
    let checked = ProcessOutput::of(cloud.command(0, &overrides).arg("--check").output().unwrap());
    assert_eq!(checked.code, Some(78));
    let line = checked.stdout.lines().find(|line| parts.iter().all(|part| line.contains(part)));
    assert!(line.is_some_and(|line| line.contains("data.cache_dir")), "{}", checked.stdout);
    assert_eq!(tree(&home), before);
}

// ---- the folder of a run ----------------------------------------------------------------------------

#[test]
fn retention_keeps_links_and_user_files() {
    let lab = Lab::new();
    let overrides = |steps: u64| [format!("train.max_steps={steps}"), "checkpoint.every=1 steps".to_owned()];
    let train = |steps: u64| lab.train(2, &overrides(steps).each_ref().map(String::as_str)).succeeded();
    train(4); // keeps the last three checkpoints: 2, 3 and 4
    let moved = lab.path("archive/step-00000002");
    std::fs::create_dir(lab.path("archive")).unwrap();
    std::fs::rename(lab.path("run/step-00000002"), &moved).unwrap();
    symlink(&moved, lab.path("run/step-00000002")).unwrap();
    write_user_file(&lab.path("run/step-00000003/samples/grid.png"));
    write_user_file(&lab.path("run/step-00000001/notes.txt"));
    write_user_file(&lab.path("run/thesis.pdf"));
    // Weights of another program in a folder with the name of an old checkpoint.
    write_user_file(&lab.path("run/step-00000000/model-00001-of-00002.safetensors"));
    let archive = tree(&moved);
    train(9);
    assert_eq!(tree(&moved), archive, "a link was followed");
    assert!(lab.path("run/step-00000002").is_symlink());
    for file in ["step-00000003/samples/grid.png", "step-00000001/notes.txt", "thesis.pdf"] {
        assert_unchanged(&lab.path("run").join(file));
    }
    assert_unchanged(&lab.path("run/step-00000000/model-00001-of-00002.safetensors"));
    let left: Vec<PathBuf> = tree(&lab.path("run/step-00000003")).into_keys().collect();
    assert_eq!(left, [lab.path("run/step-00000003/samples/grid.png")]);
    // The link stays, although there are three newer checkpoints.
    let checkpoints = lab.checkpoints("run");
    assert_eq!(checkpoints, ["step-00000002", "step-00000007", "step-00000008", "step-00000009"]);
}

#[test]
fn a_run_does_not_overwrite_foreign_checkpoints() {
    let lab = Lab::new();
    write_user_file(&lab.path("run/step-00000004/model-00001-of-00001.safetensors"));
    let before = tree(&lab.path("run"));
    let overrides = ["train.max_steps=6", "checkpoint.every=2 steps"];
    let parts = ["step-00000004", "is not a checkpoint of this program", "run.dir"];
    assert_refused(&lab.train(0, &overrides), &parts);
    assert_found_by_check(&lab, &overrides, &parts[..2]);
    assert_eq!(tree(&lab.path("run")), before);
    // The same applies to a bucket.
    let cloud = Cloud::new();
    write_user_file(&cloud.lab.path(RUN).join("step-00000004/model-00001-of-00001.safetensors"));
    assert_refused(&cloud.train(0, &overrides), &parts);
    assert_unchanged(&cloud.lab.path(RUN).join("step-00000004/model-00001-of-00001.safetensors"));
    // Other files in such a folder are no obstacle.
    let lab = Lab::new();
    write_user_file(&lab.path("run/step-00000004/notes.txt"));
    lab.train(0, &overrides).succeeded();
    assert_eq!(lab.checkpoints("run"), ["step-00000002", "step-00000004", "step-00000006"]);
    assert_unchanged(&lab.path("run/step-00000004/notes.txt"));
}

#[test]
fn an_unfinished_checkpoint_of_a_killed_run_is_replaced() {
    let lab = Lab::new();
    let folder = lab.path("run/step-00000004");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("unfinished.json"), "").unwrap();
    std::fs::write(folder.join("model-00002-of-00003.safetensors"), "half").unwrap();
    std::fs::create_dir_all(lab.path("run/step-00000001")).unwrap();
    std::fs::write(lab.path("run/step-00000001/unfinished.json"), "{}").unwrap();
    lab.train(0, &["train.max_steps=4", "checkpoint.every=2 steps"]).succeeded();
    assert_eq!(lab.checkpoints("run"), ["step-00000002", "step-00000004"]);
    assert!(!lab.path("run/step-00000001").exists());
    let names: Vec<String> =
        tree(&folder).into_keys().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let kinds = ["ema", "model", "optimizer"].map(|kind| format!("{kind}-00001-of-00001.safetensors"));
    assert_eq!(names, [&kinds[0], "manifest.json", &kinds[1], &kinds[2], "state.json"]);
}

#[test]
fn a_user_file_named_like_the_lease_is_kept() {
    let lab = Lab::new();
    write_user_file(&lab.path("run/writer.lock"));
    assert_refused(&lab.train(0, &[]), &["writer.lock", "is not a lease", "move it away"]);
    assert_found_by_check(&lab, &[], &["lease", "writer.lock"]);
    assert_unchanged(&lab.path("run/writer.lock"));
}

#[test]
fn a_foreign_ledger_is_kept() {
    let lab = Lab::new();
    write_user_file(&lab.path("logs/ledger.json"));
    let parts = ["logs/ledger.json", "was not written by this program", "run.log_dir"];
    assert_refused(&lab.train(2, &[]), &parts);
    assert_found_by_check(&lab, &[], &parts);
    assert_unchanged(&lab.path("logs/ledger.json"));
}

/// Covers the spool of a run in a bucket and its folder for downloads.
#[test]
fn the_spool_deletes_only_checkpoints() {
    let cloud = Cloud::new();
    cloud.train(2, &["train.max_steps=4", "checkpoint.every=2 steps"]).succeeded();
    let spool = cloud.spool();
    let kept =
        ["notes.txt", "fetched/notes.txt", "step-00000001/model-00001-of-00002.safetensors", "step-00000004/notes.txt"];
    kept.iter().for_each(|file| write_user_file(&spool.join(file)));
    let elsewhere = cloud.lab.path("elsewhere");
    write_user_file(&elsewhere.join("manifest.json"));
    symlink(&elsewhere, spool.join("step-00000003")).unwrap();
    cloud.train(2, &["train.max_steps=8", "checkpoint.every=2 steps"]).succeeded();
    kept.iter().for_each(|file| assert_unchanged(&spool.join(file)));
    assert_unchanged(&elsewhere.join("manifest.json"));
    // The newest checkpoint stays in the spool; of the older ones, only foreign files stay.
    let left: Vec<PathBuf> = tree(&spool.join("step-00000004")).into_keys().collect();
    assert_eq!(left, [spool.join("step-00000004/notes.txt")]);
    assert!(spool.join("step-00000008/manifest.json").exists());
}

// ---- single files -----------------------------------------------------------------------------------

#[test]
fn samples_and_exports_replace_only_their_own_files() {
    let lab = Lab::new();
    lab.train(0, &["train.max_steps=2"]).succeeded();
    let _generator = arinar_tests::reference::generator();
    tch::manual_seed(1);
    let config = VaeConfig { ch: 32, ch_mult: vec![1, 1, 1], num_res_blocks: 1, embed_dim: 4 };
    let store = nn::VarStore::new(Device::Cpu);
    AutoencoderKl::new(&store.root(), &config);
    let (vae, run) = (lab.path("vae.safetensors"), lab.path("run"));
    save_vae(&vae, &store, &config, 0.5, &[]).unwrap();
    let sample = |seed: &str| {
        let mut command = Command::new(trainer().with_file_name("arinar-sample"));
        command.args(["--run", text(&run), "--vae", text(&vae), "--out"]).arg(lab.path("out"));
        command.args(["--classes", "one", "--per-class", "1", "--steps", "2", "--threads", "1", "--seed", seed]);
        ProcessOutput::of(command.output().unwrap())
    };
    for name in ["grid.png", "0000-one-000.png"] {
        write_user_file(&lab.path("out").join(name));
        let output = sample("1");
        assert!(output.code == Some(78) && output.stderr.contains(name), "{}", output.stderr);
        assert!(output.stderr.contains("was not written by this program") && output.stderr.contains("--out"));
        assert_unchanged(&lab.path("out").join(name));
        std::fs::remove_file(lab.path("out").join(name)).unwrap();
    }
    write_user_file(&lab.path("out/notes.txt"));
    sample("1").succeeded();
    let first = std::fs::read(lab.path("out/grid.png")).unwrap();
    sample("2").succeeded();
    assert!(std::fs::read(lab.path("out/grid.png")).unwrap() != first);
    assert_unchanged(&lab.path("out/notes.txt"));

    let export = |file: &Path| {
        let mut command = Command::new(trainer());
        ProcessOutput::of(command.args(["--export", text(file), "--run", text(&run)]).output().unwrap())
    };
    let exported = lab.path("weights.safetensors");
    export(&exported).succeeded();
    export(&exported).succeeded();
    let (checkpoint, notes) = (run.join("step-00000002/model-00001-of-00001.safetensors"), lab.path("out/notes.txt"));
    for file in [&vae, &checkpoint, &notes] {
        let before = std::fs::read(file).unwrap();
        assert_refused(
            &export(file),
            &["is not an export of this program", file.file_name().unwrap().to_str().unwrap()],
        );
        assert!(std::fs::read(file).unwrap() == before);
    }
}

#[test]
fn train_vae_replaces_only_its_own_weights() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    picture_tree(&pictures, 12);
    let out = folder.path().join("vae.safetensors");
    let train = || {
        let sizes = ["--image-size", "8", "--multipliers", "1,1", "--steps", "1", "--batch", "2", "--held-out", "2"];
        arinar_data(
            &[&["train-vae", "--images", text(&pictures), "--out", text(&out), "--threads", "1"][..], &sizes].concat(),
        )
    };
    succeeded(&train());
    succeeded(&train());
    tiny_vae(&out);
    let before = std::fs::read(&out).unwrap();
    let (code, _, stderr) = exit_status(&train());
    assert!(code == 78 && stderr.contains("vae.safetensors exists and is not a VAE"), "{code} {stderr}");
    assert!(std::fs::read(&out).unwrap() == before);
}

// ---- datasets ---------------------------------------------------------------------------------------

/// A folder with images and a VAE, in which a dataset is created.
struct Pictures {
    folder: tempfile::TempDir,
}

impl Pictures {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        picture_tree(&folder.path().join("pictures"), 70);
        tiny_vae(&folder.path().join("vae.safetensors"));
        Self { folder }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join("out").join(name)
    }

    fn encode(&self, vae: &Path, more: &[&str]) -> Output {
        let (images, out) = (self.folder.path().join("pictures"), self.folder.path().join("out"));
        let fixed = ["encode", "--images", text(&images), "--vae", text(vae), "--out", text(&out)];
        arinar_data(&[&fixed[..], &["--image-size=8", "--threads=1"], more].concat())
    }

    fn assert_refused(&self, vae: &Path, more: &[&str], name: &str) {
        let (code, _, stderr) = exit_status(&self.encode(vae, more));
        assert!(code == 78 && stderr.contains(&format!("{name} exists and is not ")), "{code} {stderr}");
        assert!(stderr.contains("move it away or "), "{stderr}");
    }
}

#[test]
fn a_dataset_replaces_no_foreign_files() {
    let work = Pictures::new();
    let vae = work.folder.path().join("vae.safetensors");
    for name in ["manifest.json", "vae.safetensors", "shard-00001.safetensors", "writer.lock"] {
        for more in [&[][..], &["--overwrite"]] {
            write_user_file(&work.out(name));
            work.assert_refused(&vae, more, name);
            assert_unchanged(&work.out(name));
        }
        std::fs::remove_file(work.out(name)).unwrap();
    }
    // A user's VAE at the path where the dataset stores its own copy.
    let user_vae = work.out("vae.safetensors");
    tiny_vae(&user_vae);
    let weights = std::fs::read(&user_vae).unwrap();
    succeeded(&work.encode(&user_vae, &[]));
    assert!(std::fs::read(&user_vae).unwrap() == weights);
}

#[test]
fn overwriting_deletes_only_shards_of_the_dataset() {
    let work = Pictures::new();
    let vae = work.folder.path().join("vae.safetensors");
    succeeded(&work.encode(&vae, &["--shard-bytes", "5KB"]));
    assert!(work.out("shard-00003.safetensors").exists());
    let kept = [
        "shard-90000.safetensors",
        "shard-of-glass.safetensors",
        "shard-backup/shard-00000.safetensors",
        "notes#1",
        "thesis.pdf",
        "thesis.pdf#7",
    ];
    kept.iter().for_each(|name| write_user_file(&work.out(name)));
    let elsewhere = work.folder.path().join("elsewhere.safetensors");
    write_user_file(&elsewhere);
    symlink(&elsewhere, work.out("shard-90001.safetensors")).unwrap();
    std::fs::write(work.out("shard-00000.safetensors#4"), "left by a killed run").unwrap();
    let (code, _, stderr) = exit_status(&work.encode(&vae, &["--seed", "2", "--overwrite"]));
    let kept_foreign = "shard-90000.safetensors is not a shard of this program and was kept";
    assert!(code == 0 && stderr.contains(kept_foreign), "{code} {stderr}");
    kept.iter().for_each(|name| assert_unchanged(&work.out(name)));
    assert_unchanged(&elsewhere);
    assert!(!work.out("shard-00003.safetensors").exists() && !work.out("shard-00000.safetensors#4").exists());
    succeeded(&arinar_data(&["verify", "--deep", text(&work.folder.path().join("out"))]));
    // A damaged manifest still belongs to the dataset.
    let manifest = std::fs::read(work.out("manifest.json")).unwrap();
    std::fs::write(work.out("manifest.json"), &manifest[..200]).unwrap();
    let (code, _, stderr) = exit_status(&work.encode(&vae, &[]));
    assert!(code == 78 && stderr.contains("is not a valid manifest"), "{code} {stderr}");
    succeeded(&work.encode(&vae, &["--seed", "2", "--overwrite"]));
    assert!(std::fs::read(work.out("manifest.json")).unwrap() == manifest);
}
