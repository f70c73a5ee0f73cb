//! Tests of `arinar-data convert`, which converts the official code's cached .npz files to a dataset. The files were
//! written with NumPy by tests/fixtures/npz/make.py.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;

use arinar_data::format::{Manifest, View};
use arinar_data::read::Dataset;
use arinar_store::Store;
use arinar_tests::mpi::mpirun;
use arinar_tests::programs::program;
use arinar_tests::support::data::{arinar_data, exit_status, files, gnu_tar, succeeded, text};
use half::f16;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const SHAPE: [usize; 3] = [32, 2, 2];
const LENGTH: usize = 128;

fn cached() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/npz/cached")
}

fn convert(from: &Path, out: &Path, more: &[&str]) -> Output {
    arinar_data(&[&["convert", "--from", text(from), "--out", text(out)], more].concat())
}

fn manifest(out: &Path) -> Manifest {
    Manifest::read(&Store::open(text(out)).unwrap()).unwrap()
}

/// Returns an array in NumPy's file format.
fn npy(dtype: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}");
    header.push_str(&" ".repeat((128 - 10 - 1 - header.len() % 64) % 64));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(data);
    bytes
}

fn floats(values: &[f32]) -> Vec<u8> {
    npy("<f4", "(32, 2, 2)", &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
}

fn write_npz(path: &Path, arrays: &[(&str, &[u8])]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut archive = ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in arrays {
        let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file(format!("{name}.npy"), options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
}

fn good(path: &Path, value: f32) {
    let array = floats(&[value; LENGTH]);
    write_npz(path, &[("moments", &array), ("moments_flip", &array)]);
}

#[test]
fn every_cached_latent_is_converted_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let stdout = succeeded(&convert(&cached(), &out, &["--shard-bytes", "1KB"]));
    assert!(stdout.contains("5 pictures of 3 classes in 5 shards"), "{stdout}");
    succeeded(&arinar_data(&["verify", "--deep", text(&out)]));
    let dataset = Dataset::open(text(&out)).unwrap();
    let manifest = &dataset.manifest;
    assert_eq!(manifest.classes, ["n01440764", "n01443537", "n01484850"]);
    assert_eq!((manifest.class_counts.as_slice(), manifest.image.size), (&[2, 2, 1][..], 32));
    assert_eq!((manifest.vae.scale, manifest.moments_shape()), (0.2325, SHAPE));
    let mut seen = Vec::new();
    for sample in 0..5 {
        for view in [View::Original, View::Mirrored] {
            let check = |record: arinar_data::format::Record<'_>| {
                let picture = record.source_id as usize;
                assert_eq!(record.label, [0, 0, 1, 1, 2][picture]);
                let sign = if view == View::Original { 1.0 } else { -1.0 };
                for (index, two) in record.moments.chunks_exact(2).enumerate() {
                    let value = (picture as f64 + index as f64 / 100.0) as f32;
                    let value = if (picture, index) == (4, LENGTH - 1) { -100.0 } else { value } * sign;
                    let kept = if index >= LENGTH / 2 { value.clamp(-30.0, 20.0) } else { value };
                    assert_eq!(f16::from_le_bytes([two[0], two[1]]), f16::from_f32(kept), "{picture} {index}");
                }
                picture
            };
            seen.push(dataset.with_record(sample, view, check).unwrap());
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
}

#[test]
fn a_given_vae_must_fit_and_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let (out, vae) = (folder.path().join("out"), folder.path().join("vae.safetensors"));
    arinar_tests::support::data::tiny_vae(&vae);
    let (code, _, stderr) = exit_status(&convert(&cached(), &out, &["--vae", text(&vae)]));
    assert!(code == 78 && stderr.contains("[32, 2, 2]") && stderr.contains("[8, n, n]"), "{code} {stderr}");
    assert!(!out.join("manifest.json").exists());
    let official = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pytorch/kl16.ckpt");
    succeeded(&convert(&cached(), &out, &["--vae", text(&official)]));
    let kept = Dataset::open(text(&out)).unwrap().vae(tch::Device::Cpu).unwrap();
    assert_eq!(kept.xxh3, manifest(&out).vae.xxh3_128);
}

#[test]
fn every_unusable_file_is_reported_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (from, out) = (folder.path().join("from"), folder.path().join("out"));
    let path = |name: &str| from.join(name);
    let array = floats(&[1.0; LENGTH]);
    for index in 0..40 {
        good(&path(&format!("a/{index:03}.npz")), index as f32);
    }
    let mut large = vec![1.0; LENGTH];
    large[5] = 70_000.0;
    let mut nan = vec![1.0; LENGTH];
    nan[LENGTH - 1] = f32::NAN;
    write_npz(&path("b/large.npz"), &[("moments", &array), ("moments_flip", &floats(&large))]);
    write_npz(&path("b/nan.npz"), &[("moments", &floats(&nan)), ("moments_flip", &array)]);
    write_npz(&path("b/lacks.npz"), &[("moments", &array)]);
    let other = npy("<f4", "(32, 1, 2)", &[0; 256]);
    write_npz(&path("b/shape.npz"), &[("moments", &other), ("moments_flip", &other)]);
    let double = npy("<f8", "(32, 2, 2)", &[0; 1024]);
    write_npz(&path("b/double.npz"), &[("moments", &double), ("moments_flip", &double)]);
    let endless = npy("<f4", "(99999999999, 99999999999, 32)", &[0; 64]);
    write_npz(&path("b/endless.npz"), &[("moments", &endless), ("moments_flip", &endless)]);
    let deep = npy("<f4", &"(".repeat(30_000), &[0; 64]);
    write_npz(&path("b/deep.npz"), &[("moments", &deep), ("moments_flip", &deep)]);
    std::fs::write(path("b/text.npz"), "no archive").unwrap();
    let whole = std::fs::read(path("a/000.npz")).unwrap();
    std::fs::write(path("b/cut.npz"), &whole[..whole.len() / 2]).unwrap();
    let mut flipped = whole.clone();
    flipped[300] ^= 1;
    std::fs::write(path("b/flipped.npz"), flipped).unwrap();

    let reasons = [
        "b/large: array moments_flip is 7e4 at [1, 0, 1]",
        "b/nan: array moments is NaN at [31, 1, 1]",
        "b/lacks: is not a complete .npz file: moments_flip",
        "b/shape: array moments is [32, 1, 2], the others are [32, 2, 2]",
        "b/double: array moments holds '<f8'",
        "b/endless: array moments has 64 bytes of data",
        "b/deep: array moments has no NumPy header",
        "b/text: is not a complete",
        "b/cut: is not a complete",
        "b/flipped: is not a complete .npz file: moments",
    ];
    let (code, _, stderr) = exit_status(&convert(&from, &out, &[]));
    assert_eq!(code, 1, "{stderr}");
    for reason in reasons.iter().chain(&["10 of 50 pictures cannot be used", "--skip-bad"]) {
        assert!(stderr.contains(reason), "{reason:?} is not in {stderr}");
    }
    assert!(!out.join("manifest.json").exists());
    let stdout = succeeded(&convert(&from, &out, &["--skip-bad"]));
    assert!(stdout.contains("40 pictures") && stdout.contains("10 left out"), "{stdout}");
    let manifest = manifest(&out);
    assert_eq!((manifest.num_samples, manifest.num_sources, manifest.skipped.len()), (40, 50, 10));
    assert_eq!(manifest.class_counts, [40, 0]);
}

/// Index of a picture that belongs to one of the last shards.
const LATE: usize = 300;

#[test]
fn an_interrupted_run_goes_on_and_two_ranks_write_the_same_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    let file = |index: usize| from.join(format!("{}/{index:04}.npz", index % 7));
    (0..600).for_each(|index| good(&file(index), index as f32 / 16.0));
    let options = ["--shard-bytes", "12KB"];
    let whole = folder.path().join("whole");
    succeeded(&convert(&from, &whole, &options));
    let interrupted = folder.path().join("interrupted");
    // A damaged file ends the run without a manifest after the other shards have been written.
    std::fs::write(file(LATE), "damaged").unwrap();
    assert_eq!(exit_status(&convert(&from, &interrupted, &options)).0, 1);
    assert!(!interrupted.join("manifest.json").exists());
    good(&file(LATE), LATE as f32 / 16.0);
    let stdout = succeeded(&convert(&from, &interrupted, &options));
    assert!(stdout.contains("were kept from an earlier run"), "{stdout}");
    assert!(files(&interrupted) == files(&whole));
    let two = folder.path().join("two");
    let output = mpirun(2)
        .args(["--bind-to", "none"])
        .arg(program("arinar-data"))
        .args([&["convert", "--from", text(&from), "--out", text(&two)][..], &options].concat())
        .output()
        .unwrap();
    succeeded(&output);
    assert!(files(&two) == files(&whole));
}

#[test]
fn latents_that_have_changed_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (from, out) = (folder.path().join("from"), folder.path().join("out"));
    (0..3).for_each(|index| good(&from.join(format!("a/{index}.npz")), index as f32));
    succeeded(&convert(&from, &out, &[]));
    good(&from.join("a/1.npz"), 7.0);
    let (code, _, stderr) = exit_status(&convert(&from, &out, &[]));
    assert!(
        code == 78 && stderr.contains("a/1 has changed since") && stderr.contains("--overwrite"),
        "{code} {stderr}"
    );
    succeeded(&convert(&from, &out, &["--overwrite"]));
    succeeded(&convert(&from, &folder.path().join("fresh"), &[]));
    assert!(files(&out) == files(&folder.path().join("fresh")));
}

#[test]
fn the_official_hdf5_cache_and_a_tar_file_are_the_same_dataset_as_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    succeeded(&convert(&cached(), &path("expected"), &[]));
    let hdf5 = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hdf5");
    gnu_tar(&path("cached.tar"), &cached(), &["."]);
    for (index, from) in [hdf5.clone(), hdf5.join("latent_cache.h5"), path("cached.tar")].iter().enumerate() {
        let out = path(&format!("out{index}"));
        let output = convert(from, &out, &[]);
        succeeded(&output);
        assert!(!exit_status(&output).2.contains("may be incomplete"));
        assert!(files(&out) == files(&path("expected")), "{}", from.display());
    }
    // The script writes the list last, and the file may be damaged.
    let alone = path("alone.h5");
    std::fs::copy(hdf5.join("latent_cache.h5"), &alone).unwrap();
    let output = convert(&alone, &path("alone"), &[]);
    succeeded(&output);
    assert!(exit_status(&output).2.contains("alone.h5 has no file_list.json beside it and may be incomplete"));
    std::fs::write(path("alone_h5.json"), "[\"n01440764/other.npz\"]").unwrap();
    let (code, _, stderr) = exit_status(&convert(&alone, &path("listed"), &[]));
    assert!(code == 78 && stderr.contains("alone_h5.json: ") && stderr.contains("n01440764/"), "{code} {stderr}");
    let whole = std::fs::read(&alone).unwrap();
    std::fs::remove_file(path("alone_h5.json")).unwrap();
    for length in [0, 100, whole.len() / 2] {
        std::fs::write(&alone, &whole[..length]).unwrap();
        let (code, _, stderr) = exit_status(&convert(&alone, &path("cut"), &[]));
        assert!(matches!(code, 1 | 78) && stderr.contains("alone.h5"), "{length}: {code} {stderr}");
    }
}

#[test]
fn wrong_command_lines_exit_78_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let (from, out) = (folder.path().join("from"), folder.path().join("out"));
    let wrong = |part: &str| {
        let (code, _, stderr) = exit_status(&convert(&from, &out, &[]));
        assert!(code == 78 && stderr.contains(part), "{code} {stderr}");
    };
    wrong("cannot read");
    std::fs::create_dir(&from).unwrap();
    wrong("main_cache.py");
    good(&from.join("at-the-top.npz"), 1.0);
    wrong("is not in a class folder");
    std::fs::remove_file(from.join("at-the-top.npz")).unwrap();
    std::fs::create_dir(from.join("a")).unwrap();
    std::fs::write(from.join("a/x.npz"), "nothing").unwrap();
    wrong("none of the 1 .npz files can be used");
}
