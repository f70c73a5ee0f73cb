//! Tests of the loader: it yields the right samples, the same in every run and for every world size, and never a
//! damaged one.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use arinar_data::DataError;
use arinar_data::format::MANIFEST_NAME;
use arinar_data::random::{Purpose, SampleRandom};
use arinar_data::read::{Batch, BatchSource, Dataset, Loader, LoaderConfig, Position, SampleKey};
use arinar_tests::support::data::{
    DATASET_ID, LATENT, MIRRORED, SCALE, flip_bit, label_of, mean_of, text, write_synthetic_dataset,
};
use tch::Tensor;

fn config(rank: usize, world: usize, micro_batch: usize) -> LoaderConfig {
    LoaderConfig {
        seed: 5,
        global_batch: 12,
        rank,
        world_size: world,
        micro_batch,
        look_ahead: 2,
        window: 0,
        prefetch: true,
    }
}

fn open(folder: &Path) -> Arc<Dataset> {
    Arc::new(Dataset::open(text(folder)).unwrap())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

/// Returns samples, labels and latents of the first `steps` global batches as read by `world` ranks together.
fn read(folder: &Path, world: usize, micro_batch: usize, steps: usize) -> Vec<(SampleKey, i64, Vec<f32>)> {
    let dataset = open(folder);
    let mut ranks: Vec<_> = (0..world)
        .map(|rank| Loader::new(dataset.clone(), config(rank, world, micro_batch), Position::default()).unwrap())
        .collect();
    let mut all = Vec::new();
    for _ in 0..steps * ranks[0].accumulation() {
        for rank in &mut ranks {
            let batch = rank.next_batch().unwrap();
            for (index, key) in batch.samples.iter().enumerate() {
                let index = index as i64;
                all.push((*key, batch.labels.int64_value(&[index]), values(&batch.latents.get(index))));
            }
        }
    }
    all
}

#[test]
fn samples_have_the_expected_label_picture_view_and_noise() {
    let folder = tempfile::tempdir().unwrap();
    write_synthetic_dataset(folder.path(), &[10, 1, 14]);
    let mut mirrored = 0;
    let samples = read(folder.path(), 1, 12, 25);
    for (key, label, latent) in &samples {
        let sample = key.sample as usize;
        assert_eq!((*label, key.source_id), (label_of(sample), 2 * key.sample));
        let flip = SampleRandom::new(5, key.epoch, key.sample, Purpose::Flip).bernoulli(0.5);
        mirrored += usize::from(flip);
        let mean = mean_of(sample) + if flip { MIRRORED } else { 0.0 };
        let mut noise = SampleRandom::new(5, key.epoch, key.sample, Purpose::PosteriorNoise);
        for value in latent {
            let expected = (mean + (-15.0f32).exp() * noise.normal()) * SCALE as f32;
            assert!((value - expected).abs() <= 1e-6 * expected.abs().max(1e-6), "{value}, expected {expected}");
        }
    }
    assert!((120..180).contains(&mirrored), "{mirrored} of {} are mirrored", samples.len());
}

#[test]
fn batches_have_the_documented_shapes() {
    let folder = tempfile::tempdir().unwrap();
    write_synthetic_dataset(folder.path(), &[30]);
    let Batch { latents, labels, samples, .. } =
        Loader::new(open(folder.path()), config(1, 2, 3), Position::default()).unwrap().next_batch().unwrap();
    assert_eq!(latents.size(), [3, LATENT[0] as i64, LATENT[1] as i64, LATENT[2] as i64]);
    assert_eq!((latents.kind(), labels.kind(), labels.size()), (tch::Kind::Float, tch::Kind::Int64, vec![3]));
    assert_eq!(samples.len(), 3);
}

#[test]
fn samples_are_bitwise_equal_for_every_world_size() {
    let folder = tempfile::tempdir().unwrap();
    write_synthetic_dataset(folder.path(), &[10, 1, 14]);
    let one = read(folder.path(), 1, 12, 7);
    for (world, micro_batch) in [(1, 4), (2, 6), (2, 2), (3, 4), (4, 1)] {
        assert_eq!(read(folder.path(), world, micro_batch, 7), one, "{world} ranks, micro-batch {micro_batch}");
    }
}

#[test]
fn a_resumed_loader_starts_at_the_first_unfinished_global_batch() {
    let folder = tempfile::tempdir().unwrap();
    write_synthetic_dataset(folder.path(), &[10, 15]);
    let dataset = open(folder.path());
    let whole = read(folder.path(), 1, 12, 6);
    let mut loader = Loader::new(dataset.clone(), config(0, 1, 4), Position::default()).unwrap();
    for yielded in 0..9 {
        let token = loader.position();
        let json = serde_json::to_string(&token).unwrap();
        let token: arinar_data::read::ResumeToken = serde_json::from_str(&json).unwrap();
        let start = token.check(&dataset.manifest, 5, 12, 0).unwrap();
        let first = yielded / 3 * 12;
        assert_eq!(start, Position(first as u64));
        let mut resumed = Loader::new(dataset.clone(), config(0, 1, 12), start).unwrap();
        let batch = resumed.next_batch().unwrap();
        for (index, key) in batch.samples.iter().enumerate() {
            let (expected, _, latent) = &whole[first + index];
            assert_eq!((key, &values(&batch.latents.get(index as i64))), (expected, latent));
        }
        loader.next_batch().unwrap();
    }
}

#[test]
fn a_resume_token_of_another_run_is_rejected_with_every_difference() {
    let folder = tempfile::tempdir().unwrap();
    write_synthetic_dataset(folder.path(), &[10]);
    let dataset = open(folder.path());
    let mut token = Loader::new(dataset.clone(), config(0, 1, 12), Position::default()).unwrap().position();
    token.dataset_id = "other".to_owned();
    let error = token.check(&dataset.manifest, 6, 24, 3).unwrap_err();
    assert!(error.is_configuration());
    let message = error.to_string();
    for part in [
        "dataset id is other",
        &format!("{DATASET_ID} now"),
        "seed is 5",
        "6 now",
        "data.shuffle_window is 0",
        "global batch is 12",
        "24 now",
    ] {
        assert!(message.contains(part), "{message}");
    }
    token.dataset_id = DATASET_ID.to_owned();
    token.position = 10;
    assert!(token.check(&dataset.manifest, 5, 12, 0).unwrap_err().to_string().contains("position 10 is beyond"));
}

#[test]
fn a_batch_that_is_not_divisible_by_the_ranks_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    write_synthetic_dataset(folder.path(), &[10]);
    let error = Loader::new(open(folder.path()), config(0, 5, 1), Position::default()).unwrap_err();
    assert!(error.is_configuration() && error.to_string().contains("use 10 or 15"), "{error}");
}

/// Returns the error with which reading the dataset ends.
fn failure(dataset: Arc<Dataset>) -> DataError {
    let mut loader = Loader::new(dataset, config(0, 1, 12), Position::default()).unwrap();
    let error = (0..20).find_map(|_| loader.next_batch().err()).expect("an error within 20 batches");
    assert!(matches!(loader.next_batch(), Err(DataError::Stopped)));
    error
}

#[test]
fn a_flipped_bit_is_detected_when_the_shard_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write_synthetic_dataset(folder.path(), &[10, 15]);
    // The last byte belongs to the mirrored view of the last record.
    flip_bit(&folder.path().join("shard-00001.safetensors"), manifest.shards[1].bytes as usize - 1);
    let message = failure(open(folder.path())).to_string();
    for part in ["shard-00001.safetensors", "record 14", "mirrored", "picture 48", "arinar-data encode"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_bit_flipped_while_the_shard_is_open_is_detected_by_the_next_read() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write_synthetic_dataset(folder.path(), &[10]);
    let dataset = open(folder.path());
    dataset.shard(0).unwrap();
    flip_bit(&folder.path().join("shard-00000.safetensors"), manifest.shards[0].bytes as usize - 1);
    let message = failure(dataset).to_string();
    assert!(message.contains("shard-00000") && message.contains("record 9 (mirrored view"), "{message}");
}

#[test]
fn a_truncated_or_missing_shard_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write_synthetic_dataset(folder.path(), &[10]);
    let shard = folder.path().join("shard-00000.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 7]).unwrap();
    let message = failure(open(folder.path())).to_string();
    let sizes = format!("{} bytes instead of {}", bytes.len() - 7, manifest.shards[0].bytes);
    assert!(message.contains("shard-00000.safetensors") && message.contains(&sizes), "{message}");
    std::fs::remove_file(&shard).unwrap();
    assert!(
        failure(open(folder.path())).to_string().contains("shard-00000.safetensors is damaged: the file is missing")
    );
}

#[test]
fn missing_newer_and_broken_datasets_have_different_errors() {
    let folder = tempfile::tempdir().unwrap();
    let error = |folder: &Path| Dataset::open(text(folder)).unwrap_err();
    let missing = error(&folder.path().join("nowhere"));
    assert!(missing.is_configuration() && missing.to_string().contains("arinar-data encode"), "{missing}");
    assert!(!folder.path().join("nowhere").exists());
    let mut manifest = write_synthetic_dataset(folder.path(), &[10]);
    let path = folder.path().join(MANIFEST_NAME);
    std::fs::write(&path, r#"{"version": 99, "something": "new"}"#).unwrap();
    let newer = error(folder.path());
    assert!(newer.is_configuration() && newer.to_string().contains("version 99"), "{newer}");
    std::fs::write(&path, r#"{"version": 1, "dataset_id""#).unwrap();
    assert!(matches!(error(folder.path()), DataError::Manifest { .. }));
    manifest.num_samples += 1;
    std::fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    assert!(error(folder.path()).to_string().contains("its shards hold 10"));
}
