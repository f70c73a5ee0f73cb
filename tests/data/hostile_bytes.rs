//! Tests of the parsers of external data with randomly damaged input: each parser returns a clear error or exactly the
//! right data, and never panics or returns wrong data.
//!
//! This is a bounded replacement for fuzzing, since cargo-fuzz needs a nightly compiler. A fixed seed gives every run
//! the same cases. `HOSTILE_SEED=N` selects other cases; `HOSTILE_TIMES=N` runs N times as many.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use arinar_checkpoint::load_weights;
use arinar_data::commands::convert::read_moments;
use arinar_data::format::{Manifest, ShardLayout, View, check_shard};
use arinar_data::read::{Dataset, ResumeToken};
use arinar_model::text::one_line;
use arinar_model::weights::{WeightsError, WeightsFile};
use arinar_store::Store;
use arinar_tests::support::data::{DATASET_ID, LATENT, text, write_synthetic_dataset};
use arinar_tests::support::hostile::{Damage, cases};
use arinar_trainer::config::TrainConfig;
use tch::{Device, Kind, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Asserts that an error is one readable line, even if it quotes the damaged file.
fn assert_clear(error: &dyn std::fmt::Display) {
    let message = error.to_string();
    assert!(!message.is_empty() && !message.chars().any(|c| c.is_control()), "{message:?}");
    assert!(message.len() < 4000, "{} characters: {message:.200}", message.len());
}

#[test]
fn manifests() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write_synthetic_dataset(folder.path(), &[5, 3]);
    let path = folder.path().join("manifest.json");
    let whole = std::fs::read(&path).unwrap();
    let store = Store::open(text(folder.path())).unwrap();
    cases(400, &whole, |damaged| {
        std::fs::write(&path, damaged).unwrap();
        match Manifest::read(&store) {
            Ok(found) => assert_eq!(found, manifest),
            Err(error) => assert_clear(&error),
        }
    });
}

#[test]
fn shards() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write_synthetic_dataset(folder.path(), &[6]);
    let facts = &manifest.shards[0];
    let path = folder.path().join(&facts.name);
    let whole = std::fs::read(&path).unwrap();
    let shape = [2 * LATENT[0], LATENT[1], LATENT[2]];
    let records = |file: &[u8], layout: &ShardLayout| -> Vec<(Vec<u8>, i64, i64)> {
        let views = [View::Original, View::Mirrored];
        let all = (0..layout.count()).flat_map(|record| views.map(|view| layout.record(file, record, view)));
        all.flatten().map(|record| (record.moments.to_vec(), record.label, record.source_id)).collect()
    };
    let expected = records(&whole, &ShardLayout::parse(&whole, shape).unwrap());
    cases(500, &whole, |damaged| {
        match check_shard(damaged, facts, shape) {
            Ok(_) => assert!(damaged == whole),
            Err(error) => assert_clear(&error),
        }
        // Even without the manifest, every record returned is one of those that were written.
        if let Ok(layout) = ShardLayout::parse(damaged, shape) {
            assert!(records(damaged, &layout).iter().all(|record| expected.contains(record)));
        }
    });
    cases(60, &whole, |damaged| {
        std::fs::write(&path, damaged).unwrap();
        let dataset = Dataset::open(text(folder.path())).unwrap();
        for sample in 0..6 {
            let read = dataset.with_record(sample, View::Original, |record| (record.moments.to_vec(), record.label));
            match read {
                Ok((moments, label)) => {
                    let (right, right_label, _) = &expected[2 * sample as usize];
                    assert!(moments == *right && label == *right_label);
                }
                Err(error) => assert_clear(&error),
            }
        }
    });
}

#[test]
fn tokens() {
    let folder = tempfile::tempdir().unwrap();
    write_synthetic_dataset(folder.path(), &[5, 3]);
    let dataset = Dataset::open(text(folder.path())).unwrap();
    let token = serde_json::json!({"version": 1, "dataset_id": DATASET_ID, "seed": 4, "epoch": 7, "position": 6,
                                   "window": 0, "global_batch": 2});
    let whole = serde_json::to_vec_pretty(&token).unwrap();
    cases(300, &whole, |damaged| match serde_json::from_slice::<ResumeToken>(damaged) {
        Ok(found) => match found.check(&dataset.manifest, 4, 2, 0) {
            // A changed digit of epoch or position goes unnoticed here. In a checkpoint its hash detects that; see
            // `checkpoints`.
            Ok(position) => assert_eq!(position.0, found.epoch * 8 + found.position),
            Err(error) => assert_clear(&error),
        },
        Err(error) => assert!(error.is_data() || error.is_syntax() || error.is_eof(), "{error}"),
    });
}

#[test]
fn checkpoints() {
    let lab = arinar_tests::support::trainer::Lab::new();
    lab.train(0, &["train.max_steps=1"]).succeeded();
    let run = lab.path("run").display().to_string();
    let folder = lab.path("run/step-00000001");
    let read = || -> Result<_, String> {
        let mut all = BTreeMap::new();
        for kind in ["model", "ema", "optimizer"] {
            let loaded = load_weights::<TrainConfig>(&run, kind).map_err(|error| error.to_string())?;
            let state = (loaded.step, loaded.config, loaded.dataset);
            all.insert(kind, (state, loaded.tensors));
        }
        Ok(all)
    };
    let expected = read().unwrap();
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 5);
    for path in files {
        let whole = std::fs::read(&path).unwrap();
        // The manifest is the only file whose hash is not stored elsewhere.
        let count = if path.ends_with("manifest.json") { 200 } else { 60 };
        cases(count, &whole, |damaged| {
            std::fs::write(&path, damaged).unwrap();
            match read() {
                Ok(found) => assert!(found == expected, "{}", path.display()),
                Err(message) => assert_clear(&one_line(&message)), // as the program prints it
            }
        });
        std::fs::write(&path, &whole).unwrap();
    }
    assert!(read().unwrap() == expected);
}

fn zeros(shapes: &[(&str, &[i64])]) -> BTreeMap<String, Tensor> {
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    shapes.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))).collect()
}

/// Reads the tensors of dtypes.pth, or of a damaged copy.
fn read_dtypes(path: &Path) -> Result<BTreeMap<String, Tensor>, WeightsError> {
    let loaded = zeros(&[
        ("bf16", &[3, 2]),
        ("columns", &[6, 2]),
        ("f16", &[3, 2]),
        ("f32", &[3, 2]),
        ("f64", &[3, 2]),
        ("parameter", &[3, 2]),
        ("rows", &[2, 4]),
        ("scalar", &[]),
        ("transposed", &[3, 2]),
    ]);
    WeightsFile::open(path)?.fill_model(&loaded)?;
    Ok(loaded)
}

#[test]
fn pytorch_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.pth");
    let expected = read_dtypes(&fixture("pytorch/dtypes.pth")).unwrap();
    cases(700, &std::fs::read(fixture("pytorch/dtypes.pth")).unwrap(), |damaged| {
        std::fs::write(&path, damaged).unwrap();
        match read_dtypes(&path) {
            Ok(found) => assert!(found == expected),
            Err(error) => assert_clear(&error),
        }
    });
}

/// Returns a PyTorch file with its pickle replaced and all checksums correct.
fn with_pickle(whole: &[u8], pickle: &[u8]) -> Vec<u8> {
    let mut archive = ZipArchive::new(Cursor::new(whole)).unwrap();
    let mut other = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let name = entry.name().unwrap().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        other.start_file(&name, options).unwrap();
        other.write_all(if name.ends_with("data.pkl") { pickle } else { &bytes }).unwrap();
    }
    other.finish().unwrap().into_inner()
}

#[test]
fn pickles() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.pth");
    for name in ["pytorch/dtypes.pth", "pytorch/attack-beside.pth"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        let mut pickle = Vec::new();
        let mut archive = ZipArchive::new(Cursor::new(&whole)).unwrap();
        let entry = format!("{}/data.pkl", Path::new(name).file_stem().unwrap().to_str().unwrap());
        archive.by_name(&entry).unwrap().read_to_end(&mut pickle).unwrap();
        // The checksum is recomputed, so the damaged pickle may be valid. The test only requires that reading ends, and
        // that an error is clear.
        cases(300, &pickle, |damaged| {
            std::fs::write(&path, with_pickle(&whole, damaged)).unwrap();
            if let Err(error) = read_dtypes(&path) {
                assert_clear(&error);
            }
        });
    }
    assert!(!Path::new("/tmp/arinar-unpickled-a-command").exists());
}

#[test]
fn pickles_that_claim_excessive_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("claims.pth");
    let whole = std::fs::read(fixture("pytorch/dtypes.pth")).unwrap();
    let nested = [b"\x80\x02".to_vec(), vec![b']'; 1 << 20], vec![b'a'; (1 << 20) - 1], b".".to_vec()].concat();
    let bomb: Vec<u8> = [b"\x80\x02]q\x00".to_vec(), b"h\x00h\x00\x86q\x00".repeat(60), b".".to_vec()].concat();
    let claims: [(&str, Vec<u8>); 6] = [
        ("a string of 4 GiB", b"\x80\x02X\xff\xff\xff\xff.".to_vec()),
        ("bytes of 16 EiB", b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.".to_vec()),
        ("a number of 4 GiB", b"\x80\x02\x8b\xff\xff\xff\x7f.".to_vec()),
        ("a million lists in each other", nested),
        ("pairs of pairs of pairs", bomb),
        ("a pickle of 5 MiB", vec![b'N'; 5 << 20]),
    ];
    for (claim, pickle) in claims {
        std::fs::write(&path, with_pickle(&whole, &pickle)).unwrap();
        let error = read_dtypes(&path).expect_err(claim);
        assert!(matches!(error, WeightsError::PyTorch { .. }), "{claim}: {error}");
        assert_clear(&error);
    }
}

#[test]
fn cached_latents() {
    const SHAPE: [usize; 3] = [32, 2, 2];
    // One file as written by np.savez, and one compressed file.
    for name in ["n01440764/n01440764_18.JPEG.npz", "n01443537/n01443537_10007.JPEG.npz"] {
        let original = std::fs::read(fixture("npz/cached").join(name)).unwrap();
        let expected = read_moments(&original, SHAPE).unwrap();
        cases(250, &original, |damaged| match read_moments(damaged, SHAPE) {
            Ok(found) => assert!(found == expected),
            Err(error) => assert_clear(&error),
        });
    }
}

#[test]
fn safetensors_headers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.safetensors");
    let tensors = BTreeMap::from([("a".to_owned(), Tensor::from_slice(&[1.0f32, 2.0]))]);
    let whole = arinar_model::weights::serialize(&path, &tensors, &BTreeMap::new()).unwrap();
    let header = whole.len() - 8;
    let loaded = zeros(&[("a", &[2])]);
    // The format has no checksum, so values cannot be verified: damage only the header and check the errors.
    cases(200, &whole[..header], |damaged| {
        std::fs::write(&path, [damaged, &whole[header..]].concat()).unwrap();
        if let Err(error) = WeightsFile::open(&path).and_then(|file| file.fill_model(&loaded)) {
            assert_clear(&error);
        }
    });
}

#[test]
fn damage_changes_the_bytes_as_described() {
    let whole: Vec<u8> = (0..=255).collect();
    let mut unchanged = 0;
    cases(200, &whole, |damaged| unchanged += u32::from(damaged == whole));
    assert!(unchanged < 40, "{unchanged} of 200 cases leave the bytes unchanged");
    assert_eq!(Damage::Flip { at: 3, bit: 1 }.apply(b"abcdefgh".to_vec()), b"abcfefgh");
    assert_eq!(Damage::Swap { at: 1, first: 2, second: 3 }.apply(b"abcdefgh".to_vec()), b"adefbcgh");
    assert_eq!(Damage::Splice { from: 0, to: 6, length: 4 }.apply(b"abcdefgh".to_vec()), b"abcdefab");
}
