//! The programs delete and replace only what they have made themselves. Each test puts something of a person in the way
//! and looks at it afterwards.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use arinar_model::vae::{AutoencoderKl, VaeConfig, save_vae};
use arinar_tests::support::checkpoint::{Cloud, RUN};
use arinar_tests::support::data::{arinar_data, ended, picture_tree, succeeded, text, tiny_vae};
use arinar_tests::support::trainer::{Ended, Lab, trainer};
use tch::{Device, nn};

/// Contents of a person's file.
const MINE: &str = "years of work";

/// Writes a person's file, and the folders it lies in.
fn mine(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, MINE).unwrap();
}

fn assert_mine(path: &Path) {
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), MINE, "{}", path.display());
}

/// Every file below a folder with its contents; links by their targets.
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

/// Exit code 78 and one line with these parts.
fn refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.code, Some(78), "{}\n{}", ended.stdout, ended.stderr);
    for part in parts {
        assert!(ended.error().contains(part), "{part:?} is not in {}", ended.error());
    }
}

/// `--check` finds the same problem, and changes nothing either.
fn found_by_check(lab: &Lab, overrides: &[&str], parts: &[&str]) {
    let mut command = lab.command(0, overrides);
    let ended = Ended::of(command.arg("--check").output().unwrap());
    assert_eq!(ended.code, Some(78), "{}\n{}", ended.stdout, ended.stderr);
    let line = ended.stdout.lines().find(|line| parts.iter().all(|part| line.contains(part)));
    assert!(line.is_some(), "{parts:?} are in no line of {}", ended.stdout);
}

// ---- the cache of shards ----------------------------------------------------------------------------

/// As it was found: a home folder named as the cache, and room for few shards.
#[test]
fn a_home_folder_is_not_taken_for_a_cache() {
    let cloud = Cloud::new();
    cloud.publish_dataset();
    let home = cloud.lab.path("home");
    mine(&home.join(".ssh/id_rsa"));
    mine(&home.join("docs/thesis.pdf"));
    let before = tree(&home);
    let cache = format!("data.cache_dir={}", home.display());
    let overrides = ["data.url=s3://data", &cache, "data.cache_limit=100KB", "train.max_steps=25"];
    let parts = ["home", "is not empty", "data.cache_dir", "new or empty folder"];
    for ranks in [0, 2] {
        refused(&cloud.train(ranks, &overrides), &parts);
        assert_eq!(tree(&home), before);
    }
    let checked = Ended::of(cloud.command(0, &overrides).arg("--check").output().unwrap());
    assert_eq!(checked.code, Some(78));
    let line = checked.stdout.lines().find(|line| parts.iter().all(|part| line.contains(part)));
    assert!(line.is_some_and(|line| line.contains("data.cache_dir")), "{}", checked.stdout);
    assert_eq!(tree(&home), before);
}

// ---- the folder of a run ----------------------------------------------------------------------------

#[test]
fn retention_spares_links_and_what_a_person_keeps_beside_checkpoints() {
    let lab = Lab::new();
    let overrides = |steps: u64| [format!("train.max_steps={steps}"), "checkpoint.every=1".to_owned()];
    let train = |steps: u64| lab.train(2, &overrides(steps).each_ref().map(String::as_str)).succeeded();
    train(4); // keeps the last three of its checkpoints: 2, 3, 4
    let moved = lab.path("archive/step-00000002");
    std::fs::create_dir(lab.path("archive")).unwrap();
    std::fs::rename(lab.path("run/step-00000002"), &moved).unwrap();
    symlink(&moved, lab.path("run/step-00000002")).unwrap();
    mine(&lab.path("run/step-00000003/samples/grid.png"));
    mine(&lab.path("run/step-00000001/notes.txt"));
    mine(&lab.path("run/thesis.pdf"));
    // Weights of another program in a folder that is called like an old checkpoint's.
    mine(&lab.path("run/step-00000000/model-00001-of-00002.safetensors"));
    let archive = tree(&moved);
    train(9);
    assert_eq!(tree(&moved), archive, "a link was followed");
    assert!(lab.path("run/step-00000002").is_symlink());
    for file in ["step-00000003/samples/grid.png", "step-00000001/notes.txt", "thesis.pdf"] {
        assert_mine(&lab.path("run").join(file));
    }
    assert_mine(&lab.path("run/step-00000000/model-00001-of-00002.safetensors"));
    let left: Vec<PathBuf> = tree(&lab.path("run/step-00000003")).into_keys().collect();
    assert_eq!(left, [lab.path("run/step-00000003/samples/grid.png")]);
    // The link counts as one of the three that are kept, unless newer ones are.
    let checkpoints = lab.checkpoints("run");
    assert_eq!(checkpoints, ["step-00000002", "step-00000007", "step-00000008", "step-00000009"]);
}

#[test]
fn a_run_does_not_save_over_what_it_has_not_made() {
    let lab = Lab::new();
    mine(&lab.path("run/step-00000004/model-00001-of-00001.safetensors"));
    let before = tree(&lab.path("run"));
    let overrides = ["train.max_steps=6", "checkpoint.every=2"];
    let parts = ["step-00000004", "is not a checkpoint of this program", "run.dir"];
    refused(&lab.train(0, &overrides), &parts);
    found_by_check(&lab, &overrides, &parts[..2]);
    assert_eq!(tree(&lab.path("run")), before);
    // The same in a bucket.
    let cloud = Cloud::new();
    mine(&cloud.lab.path(RUN).join("step-00000004/model-00001-of-00001.safetensors"));
    refused(&cloud.train(0, &overrides), &parts);
    assert_mine(&cloud.lab.path(RUN).join("step-00000004/model-00001-of-00001.safetensors"));
    // Other files in such a folder do not matter.
    let lab = Lab::new();
    mine(&lab.path("run/step-00000004/notes.txt"));
    lab.train(0, &overrides).succeeded();
    assert_eq!(lab.checkpoints("run"), ["step-00000002", "step-00000004", "step-00000006"]);
    assert_mine(&lab.path("run/step-00000004/notes.txt"));
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
    lab.train(0, &["train.max_steps=4", "checkpoint.every=2"]).succeeded();
    assert_eq!(lab.checkpoints("run"), ["step-00000002", "step-00000004"]);
    assert!(!lab.path("run/step-00000001").exists());
    let names: Vec<String> =
        tree(&folder).into_keys().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let kinds = ["ema", "model", "optimizer"].map(|kind| format!("{kind}-00001-of-00001.safetensors"));
    assert_eq!(names, [&kinds[0], "manifest.json", &kinds[1], &kinds[2], "state.json"]);
}

#[test]
fn a_file_called_like_the_lease_stays() {
    let lab = Lab::new();
    mine(&lab.path("run/writer.lock"));
    refused(&lab.train(0, &[]), &["writer.lock", "is not a lease", "move it away"]);
    found_by_check(&lab, &[], &["lease", "writer.lock"]);
    assert_mine(&lab.path("run/writer.lock"));
}

#[test]
fn a_ledger_of_somebody_else_stays() {
    let lab = Lab::new();
    mine(&lab.path("logs/ledger.json"));
    let parts = ["logs/ledger.json", "was not written by this program", "run.log_dir"];
    refused(&lab.train(2, &[]), &parts);
    found_by_check(&lab, &[], &parts);
    assert_mine(&lab.path("logs/ledger.json"));
}

/// The spool of a run in a bucket, and the folder for downloads in it.
#[test]
fn the_spool_deletes_checkpoints_only() {
    let cloud = Cloud::new();
    cloud.train(2, &["train.max_steps=4", "checkpoint.every=2"]).succeeded();
    let spool = cloud.spool();
    let kept =
        ["notes.txt", "fetched/notes.txt", "step-00000001/model-00001-of-00002.safetensors", "step-00000004/notes.txt"];
    kept.iter().for_each(|file| mine(&spool.join(file)));
    let elsewhere = cloud.lab.path("elsewhere");
    mine(&elsewhere.join("manifest.json"));
    symlink(&elsewhere, spool.join("step-00000003")).unwrap();
    cloud.train(2, &["train.max_steps=8", "checkpoint.every=2"]).succeeded();
    kept.iter().for_each(|file| assert_mine(&spool.join(file)));
    assert_mine(&elsewhere.join("manifest.json"));
    // The newest stays in the spool, and of the older ones nothing but what is not theirs.
    let left: Vec<PathBuf> = tree(&spool.join("step-00000004")).into_keys().collect();
    assert_eq!(left, [spool.join("step-00000004/notes.txt")]);
    assert!(spool.join("step-00000008/manifest.json").exists());
}

// ---- single files -----------------------------------------------------------------------------------

#[test]
fn samples_and_exports_replace_their_own_files_alone() {
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
        Ended::of(command.output().unwrap())
    };
    for name in ["grid.png", "0000-one-000.png"] {
        mine(&lab.path("out").join(name));
        let ended = sample("1");
        assert!(ended.code == Some(78) && ended.stderr.contains(name), "{}", ended.stderr);
        assert!(ended.stderr.contains("was not written by this program") && ended.stderr.contains("--out"));
        assert_mine(&lab.path("out").join(name));
        std::fs::remove_file(lab.path("out").join(name)).unwrap();
    }
    mine(&lab.path("out/notes.txt"));
    sample("1").succeeded();
    let first = std::fs::read(lab.path("out/grid.png")).unwrap();
    sample("2").succeeded();
    assert!(std::fs::read(lab.path("out/grid.png")).unwrap() != first);
    assert_mine(&lab.path("out/notes.txt"));

    let export = |file: &Path| {
        let mut command = Command::new(trainer());
        Ended::of(command.args(["--export", text(file), "--run", text(&run)]).output().unwrap())
    };
    let exported = lab.path("weights.safetensors");
    export(&exported).succeeded();
    export(&exported).succeeded();
    let (checkpoint, notes) = (run.join("step-00000002/model-00001-of-00001.safetensors"), lab.path("out/notes.txt"));
    for file in [&vae, &checkpoint, &notes] {
        let before = std::fs::read(file).unwrap();
        refused(&export(file), &["is not an export of this program", file.file_name().unwrap().to_str().unwrap()]);
        assert!(std::fs::read(file).unwrap() == before);
    }
}

#[test]
fn train_vae_replaces_its_own_weights_alone() {
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
    let (code, _, stderr) = ended(&train());
    assert!(code == 78 && stderr.contains("vae.safetensors exists and is not a VAE"), "{code} {stderr}");
    assert!(std::fs::read(&out).unwrap() == before);
}

// ---- datasets ---------------------------------------------------------------------------------------

/// Pictures, a VAE, and a place for a dataset.
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

    fn refused(&self, vae: &Path, more: &[&str], name: &str) {
        let (code, _, stderr) = ended(&self.encode(vae, more));
        assert!(code == 78 && stderr.contains(&format!("{name} exists and is not ")), "{code} {stderr}");
        assert!(stderr.contains("move it away or "), "{stderr}");
    }
}

#[test]
fn a_dataset_replaces_no_file_of_somebody_else() {
    let work = Pictures::new();
    let vae = work.folder.path().join("vae.safetensors");
    for name in ["manifest.json", "vae.safetensors", "shard-00001.safetensors", "writer.lock"] {
        for more in [&[][..], &["--overwrite"]] {
            mine(&work.out(name));
            work.refused(&vae, more, name);
            assert_mine(&work.out(name));
        }
        std::fs::remove_file(work.out(name)).unwrap();
    }
    // The weights of somebody's VAE, given from the very place where the dataset keeps its own.
    let theirs = work.out("vae.safetensors");
    tiny_vae(&theirs);
    let weights = std::fs::read(&theirs).unwrap();
    succeeded(&work.encode(&theirs, &[]));
    assert!(std::fs::read(&theirs).unwrap() == weights);
}

#[test]
fn overwriting_deletes_shards_of_the_dataset_alone() {
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
    kept.iter().for_each(|name| mine(&work.out(name)));
    let elsewhere = work.folder.path().join("elsewhere.safetensors");
    mine(&elsewhere);
    symlink(&elsewhere, work.out("shard-90001.safetensors")).unwrap();
    std::fs::write(work.out("shard-00000.safetensors#4"), "left by a killed run").unwrap();
    let said = succeeded(&work.encode(&vae, &["--seed", "2", "--overwrite"]));
    assert!(said.contains("shard-90000.safetensors is not a shard of this program and was kept"), "{said}");
    kept.iter().for_each(|name| assert_mine(&work.out(name)));
    assert_mine(&elsewhere);
    assert!(!work.out("shard-00003.safetensors").exists() && !work.out("shard-00000.safetensors#4").exists());
    succeeded(&arinar_data(&["verify", "--deep", text(&work.folder.path().join("out"))]));
    // A manifest that is damaged is still the dataset's.
    let manifest = std::fs::read(work.out("manifest.json")).unwrap();
    std::fs::write(work.out("manifest.json"), &manifest[..200]).unwrap();
    let (code, _, stderr) = ended(&work.encode(&vae, &[]));
    assert!(code == 1 && stderr.contains("is not a valid manifest"), "{code} {stderr}");
    succeeded(&work.encode(&vae, &["--seed", "2", "--overwrite"]));
    assert!(std::fs::read(work.out("manifest.json")).unwrap() == manifest);
}
