//! Tests that run `arinar-data encode`, `verify` and `inspect` as a user does.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use arinar_data::format::Manifest;
use arinar_model::vae::load_vae;
use arinar_store::Store;
use arinar_tests::mpi::mpirun;
use arinar_tests::programs::program;
use arinar_tests::reference::random::{Draws, SHARD_ORDER};
use arinar_tests::reference::records::Records;
use arinar_tests::support::data::{arinar_data, exit_status, files, flip_bit, picture_tree, succeeded, text, tiny_vae};
use image::{Rgb, RgbImage};
use tch::{Device, Tensor};

/// Pictures and a VAE in a temporary folder.
pub(super) struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    pub(super) fn new(pictures: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        picture_tree(&folder.path().join("pictures"), pictures);
        tiny_vae(&folder.path().join("vae.safetensors"));
        Self { folder }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the arguments of an encode run that writes to the folder `out`. It uses one thread, so that sums are
    /// computed in a fixed order.
    pub(super) fn arguments(&self, out: &str, more: &[&str]) -> Vec<String> {
        let (images, vae, out) = (self.path("pictures"), self.path("vae.safetensors"), self.path(out));
        let fixed = ["encode", "--images", text(&images), "--vae", text(&vae), "--out", text(&out)];
        let given = more.iter().any(|option| option.starts_with("--image-size"));
        let size: &[&str] = if given { &[] } else { &["--image-size=8"] };
        fixed.iter().chain(&["--threads", "1"]).chain(size).chain(more).map(|argument| (*argument).to_owned()).collect()
    }

    pub(super) fn encode(&self, out: &str, more: &[&str]) -> Output {
        Command::new(program("arinar-data")).args(self.arguments(out, more)).output().unwrap()
    }

    pub(super) fn manifest(&self, out: &str) -> Manifest {
        Manifest::read(&Store::open(text(&self.path(out))).unwrap()).unwrap()
    }
}

#[test]
fn an_encoded_folder_is_read_by_inspect_and_verify() {
    let work = Fixture::new(70);
    let stdout = succeeded(&work.encode("out", &[]));
    assert!(stdout.contains("70 pictures of 2 classes in 3 shards"), "{stdout}");
    let manifest = work.manifest("out");
    assert_eq!((manifest.num_samples, manifest.class_counts.as_slice()), (70, &[46, 24][..]));
    assert_eq!(manifest.moments_shape(), [8, 4, 4]);
    let out = work.path("out");
    let summary = succeeded(&arinar_data(&["inspect", text(&out)]));
    for part in [manifest.dataset_id.as_str(), "70 of 70 pictures", "4x4x4, scale 0.5", "birds"] {
        assert!(summary.contains(part), "{summary}");
    }
    let json = succeeded(&arinar_data(&["inspect", "--json", &format!("file://{}", text(&out))]));
    assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    assert!(succeeded(&arinar_data(&["verify", "--deep", text(&out)])).contains("3 shards with 70 records are sound"));
}

/// Returns a picture that is changed by mirroring and by any swap of axes or colours.
fn asymmetric(index: u32) -> RgbImage {
    RgbImage::from_fn(8, 8, |x, y| Rgb([(30 * x + index) as u8, (250 - 25 * y) as u8, (x * y * 5) as u8]))
}

/// Returns a picture as the VAE's input, [1, 3, 8, 8], with levels 0 to 255 mapped to -1 to 1. `column` maps each
/// column to the column of the picture that it is taken from.
fn as_input(picture: &RgbImage, column: impl Fn(u32) -> u32) -> Tensor {
    let level = |channel: usize, y: u32, x: u32| f32::from(picture.get_pixel(column(x), y).0[channel]) / 127.5 - 1.0;
    let levels: Vec<f32> = (0..3)
        .flat_map(|c| (0..8).flat_map(move |y| (0..8).map(move |x| (c, y, x))))
        .map(|(c, y, x)| level(c, y, x))
        .collect();
    Tensor::from_slice(&levels).view([1, 3, 8, 8])
}

#[test]
fn records_hold_the_moments_of_the_picture_and_of_its_mirror_image() {
    let work = Fixture::new(0);
    for index in 0..5 {
        let class = if index < 3 { "birds" } else { "apes" };
        asymmetric(index).save(work.path("pictures").join(class).join(format!("{index}.png"))).unwrap();
    }
    succeeded(&work.encode("out", &[]));
    let vae = load_vae(&work.path("vae.safetensors"), Device::Cpu).unwrap();
    let moments = |input: &Tensor| tch::no_grad(|| vae.vae.encode(input).concatenated().get(0));
    let records = Records::read(&work.path("out")).records;
    // Sorted by name: apes/3 and apes/4, then birds/0 to birds/2.
    let pictures = [3, 4, 0, 1, 2];
    assert_eq!(records.len(), 5);
    for record in &records {
        assert_eq!(record.label, i64::from(record.source_id > 1));
        let picture = asymmetric(pictures[record.source_id as usize]);
        let expected = [as_input(&picture, |x| x), as_input(&picture, |x| 7 - x)].map(|input| moments(&input));
        for (view, expected) in record.views.iter().zip(&expected) {
            // Half precision has eleven bits.
            let error = ((view - expected).abs() / (expected.abs() + 0.01)).max().double_value(&[]);
            assert!(error < 1e-3, "picture {}: {error}", record.source_id);
        }
        let difference = (&expected[0] - &expected[1]).abs().max().double_value(&[]);
        assert!(difference > 0.05, "the mirror image has the same moments: {difference}");
    }
}

#[test]
fn pictures_are_randomly_distributed_over_the_shards() {
    let work = Fixture::new(70);
    succeeded(&work.encode("out", &["--seed", "9"]));
    let dataset = Records::read(&work.path("out"));
    assert_eq!(dataset.shards, [24, 24, 22]);
    let sources: Vec<i64> = dataset.records.iter().map(|record| record.source_id).collect();
    assert_eq!(sources, Draws::new(9, SHARD_ORDER, 0, 0).shuffled((0..70).collect()));
}

#[test]
fn two_ranks_write_the_same_dataset_as_one() {
    let work = Fixture::new(70);
    succeeded(&work.encode("one", &[]));
    let output = mpirun(2)
        .args(["--bind-to", "none"])
        .arg(program("arinar-data"))
        .args(work.arguments("two", &[]))
        .output()
        .expect("run mpirun");
    let stdout = succeeded(&output);
    assert_eq!(stdout.matches("70 pictures").count(), 1, "{stdout}");
    assert_eq!(files(&work.path("two")), files(&work.path("one")));
}

#[test]
fn an_error_common_to_all_ranks_is_printed_once() {
    let work = Fixture::new(5);
    let output = mpirun(2)
        .args(["--bind-to", "none"])
        .arg(program("arinar-data"))
        .args(work.arguments("out", &["--image-size=9"]))
        .output()
        .expect("run mpirun");
    let (code, _, stderr) = exit_status(&output);
    assert_eq!((code, stderr.matches("multiple of the VAE's stride").count()), (78, 1), "{stderr}");
}

#[test]
fn a_killed_run_resumes() {
    let work = Fixture::new(400);
    // Small batches make the run slow enough to be killed.
    let options = ["--batch", "1"];
    succeeded(&work.encode("whole", &options));
    let mut run = Command::new(program("arinar-data"))
        .args(work.arguments("killed", &options))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let second_shard = work.path("killed/shard-00001.safetensors");
    let started = Instant::now();
    while !second_shard.exists() {
        assert!(started.elapsed() < Duration::from_secs(120), "no second shard was written");
        std::thread::sleep(Duration::from_millis(1));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(!work.path("killed/manifest.json").exists(), "the run ended before it could be killed");
    let stdout = succeeded(&work.encode("killed", &options));
    assert!(stdout.contains("were kept from an earlier run"), "{stdout}");
    assert_eq!(files(&work.path("killed")), files(&work.path("whole")));
}

#[test]
fn running_again_repairs_a_damaged_dataset_and_keeps_the_rest() {
    let work = Fixture::new(70);
    succeeded(&work.encode("out", &[]));
    let whole = files(&work.path("out"));
    let out = work.path("out");
    flip_bit(&out.join("shard-00001.safetensors"), 1500);
    let bytes = std::fs::read(out.join("shard-00002.safetensors")).unwrap();
    std::fs::write(out.join("shard-00002.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    for arguments in [vec!["verify", text(&out)], vec!["verify", "--deep", text(&out)]] {
        let (code, _, stderr) = exit_status(&arinar_data(&arguments));
        assert_eq!(code, 1);
        for part in ["shard-00001.safetensors is damaged: record ", "wrong CRC32C", "shard-00002", "2 of 3 shards"] {
            assert!(stderr.contains(part), "{stderr}");
        }
    }
    std::fs::remove_file(out.join("shard-00000.safetensors")).unwrap();
    assert!(exit_status(&arinar_data(&["verify", text(&out)])).2.contains("the file is missing"));
    succeeded(&work.encode("out", &[]));
    assert_eq!(files(&out), whole);
    let stdout = succeeded(&work.encode("out", &[]));
    assert!(stdout.contains("70 were kept from an earlier run"), "{stdout}");
}

#[test]
fn undecodable_pictures_are_named_and_can_be_skipped() {
    let work = Fixture::new(70);
    let good = std::fs::read(work.path("pictures/apes/0001.png")).unwrap();
    std::fs::write(work.path("pictures/apes/0001.png"), &good[..good.len() / 2]).unwrap();
    std::fs::write(work.path("pictures/birds/0003.png"), "no picture").unwrap();
    let (code, _, stderr) = exit_status(&work.encode("out", &[]));
    assert_eq!(code, 1);
    for part in ["2 of 70 pictures", "apes/0001.png", "birds/0003.png", "--skip-bad"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert!(!work.path("out/manifest.json").exists());

    let stdout = succeeded(&work.encode("out", &["--skip-bad"]));
    assert!(
        stdout.contains("68 pictures") && stdout.contains("2 left out") && stdout.contains("birds/0003.png"),
        "{stdout}"
    );
    let manifest = work.manifest("out");
    assert_eq!((manifest.num_samples, manifest.num_sources), (68, 70));
    assert_eq!(manifest.skipped, ["apes/0001.png", "birds/0003.png"]);
    assert_eq!(manifest.class_counts, [45, 23]);
    assert_eq!(manifest.shards.iter().map(|shard| shard.count).sum::<u64>(), 68);
    succeeded(&arinar_data(&["verify", "--deep", text(&work.path("out"))]));
    assert!(succeeded(&work.encode("out", &["--skip-bad"])).contains("2 left out"));

    // Once the pictures are repaired, the shards that lack them are written again.
    std::fs::write(work.path("pictures/apes/0001.png"), &good).unwrap();
    std::fs::write(work.path("pictures/birds/0003.png"), &good).unwrap();
    succeeded(&work.encode("out", &[]));
    assert_eq!(work.manifest("out").num_samples, 70);
}

#[test]
fn another_dataset_is_overwritten_only_on_request() {
    let work = Fixture::new(70);
    succeeded(&work.encode("out", &["--shard-bytes", "10KB"]));
    let before = files(&work.path("out"));
    let (code, _, stderr) = exit_status(&work.encode("out", &["--seed", "2"]));
    assert!(code == 78 && stderr.contains("--overwrite"), "{code} {stderr}");
    std::fs::remove_file(work.path("out/manifest.json")).unwrap();
    let (code, _, stderr) = exit_status(&work.encode("out", &["--seed", "2"]));
    assert!(code == 78 && stderr.contains("shard-00000"), "{code} {stderr}");
    assert_eq!(files(&work.path("out"))[..], before[1..]);
    succeeded(&work.encode("out", &["--seed", "2", "--overwrite"]));
    succeeded(&work.encode("fresh", &["--seed", "2"]));
    assert_eq!(files(&work.path("out")), files(&work.path("fresh")));
}

#[test]
fn wrong_command_lines_exit_78_with_advice() {
    let work = Fixture::new(5);
    let wrong = |arguments: &[&str], part: &str| {
        let (code, _, stderr) = exit_status(&arinar_data(arguments));
        assert!(code == 78 && stderr.contains(part), "{arguments:?}: {code} {stderr}");
    };
    wrong(&["encode"], "--images");
    wrong(&["incode"], "encode");
    wrong(&["encode", "--imagse", "x"], "--images");
    wrong(&["inspect", text(&work.path("nowhere"))], "arinar-data encode");
    wrong(&["verify", "ftp://host/x"], "s3://");
    let encode = |more: &[&str], part: &str| {
        let arguments = work.arguments("out", more);
        wrong(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), part);
    };
    encode(&["--image-size=9"], "use 10");
    encode(&["--images", "/nowhere/at/all"], "/nowhere/at/all");
    encode(&["--batch=0"], "1 to 65536");
    encode(&["--shard-bytes=12parsecs"], "parsecs");
    std::fs::write(work.path("vae.safetensors"), "no weights").unwrap();
    encode(&[], "vae.safetensors");
}

#[test]
fn help_lists_the_commands() {
    let help = succeeded(&arinar_data(&["--help"]));
    for command in ["encode", "train-vae", "inspect", "verify"] {
        assert!(help.contains(command), "{help}");
    }
}
