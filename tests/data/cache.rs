//! Tests of the cache of a remote dataset: it respects its limit, is shared between jobs, repairs itself and never
//! returns a wrong sample. The store is a local folder here; tests/data/s3.rs tests the same over S3.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{DirEntry, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arinar_data::format::{Manifest, View};
use arinar_data::read::cache::{CacheConfig, largest_window, needed_bytes};
use arinar_data::read::{BatchSource, Dataset, Loader, LoaderConfig, Position};
use arinar_data::{DataError, Reporter};
use arinar_tests::support::data::{DATASET_ID, flip_bit, mean_of, text, write_synthetic_dataset};
use half::f16;

/// A dataset of 12 shards, and a cache folder.
struct Lab {
    folder: tempfile::TempDir,
    manifest: Manifest,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let manifest = write_synthetic_dataset(&folder.path().join("store"), &[9, 12, 3, 8, 8, 8, 10, 2, 7, 8, 8, 5]);
        Self { folder, manifest }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn copy(&self, shard: usize) -> PathBuf {
        self.cache().join(DATASET_ID).join(&self.manifest.shards[shard].name)
    }

    fn original(&self, shard: usize) -> PathBuf {
        self.folder.path().join("store").join(&self.manifest.shards[shard].name)
    }

    fn open(&self, limit: Option<u64>) -> Arc<Dataset> {
        let cache = CacheConfig { folder: Some(self.cache()), limit };
        Arc::new(Dataset::open_with_cache(text(&self.folder.path().join("store")), cache, Reporter::console()).unwrap())
    }

    /// Returns the size of everything in the cache, in bytes.
    fn used(&self) -> u64 {
        // Files may appear and disappear while the folder is read; two equal listings are a consistent snapshot.
        let mut files = self.files();
        loop {
            let again = self.files();
            if again == files {
                return files.values().sum();
            }
            files = again;
        }
    }

    /// Returns the size of each of the dataset's files in the cache, in bytes.
    fn files(&self) -> BTreeMap<OsString, u64> {
        let Ok(entries) = std::fs::read_dir(self.cache().join(DATASET_ID)) else { return BTreeMap::new() };
        let size = |entry: DirEntry| Some((entry.file_name(), entry.metadata().ok()?.len()));
        entries.filter_map(|entry| size(entry.unwrap())).collect()
    }
}

fn loader(dataset: &Arc<Dataset>, window: u64, start: u64) -> Loader {
    let config = LoaderConfig {
        seed: 3,
        global_batch: 8,
        rank: 0,
        world_size: 1,
        micro_batch: 8,
        look_ahead: 1,
        window,
        prefetch: true,
    };
    Loader::new(dataset.clone(), config, Position(start)).unwrap()
}

/// Reads a record and asserts that it belongs to `sample`.
fn check_record(dataset: &Dataset, sample: u64) -> Result<(), DataError> {
    dataset.with_record(sample, View::Original, |record| {
        assert_eq!(record.source_id as u64, 2 * sample);
        let mean = f16::from_le_bytes([record.moments[0], record.moments[1]]);
        assert_eq!(mean.to_f32(), mean_of(sample as usize));
    })
}

#[test]
fn a_small_cache_stays_within_its_limit_and_yields_every_sample_once_per_epoch() {
    let lab = Lab::new();
    let limit = needed_bytes(&lab.manifest, 2);
    assert!(limit < needed_bytes(&lab.manifest, 0) / 2);
    let dataset = lab.open(Some(limit));
    assert_eq!(dataset.shuffle_window(None).unwrap(), 2);
    let mut loader = loader(&dataset, 2, 0);
    let mut seen = Vec::new();
    // 88 samples in batches of 8 are 11 batches per epoch; read three epochs.
    for _ in 0..33 {
        let batch = loader.next_batch().unwrap();
        for (index, key) in batch.samples.iter().enumerate() {
            assert_eq!(key.source_id, 2 * key.sample);
            assert_eq!(batch.labels.int64_value(&[index as i64]), (key.sample % 3) as i64);
        }
        seen.extend(batch.samples.iter().map(|key| (key.epoch, key.sample)));
        assert!(lab.used() <= limit, "{} of {limit} bytes", lab.used());
    }
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 3 * 88);
    assert!(seen.iter().all(|(epoch, _)| *epoch < 3));
}

#[test]
fn shards_needed_last_are_evicted_first() {
    let lab = Lab::new();
    let dataset = lab.open(Some(needed_bytes(&lab.manifest, 0) - 1));
    let window = dataset.shuffle_window(None).unwrap();
    assert_eq!(window, 5);
    let shuffle = dataset.shuffle(3, 2);
    // All shards but the one needed last are in the cache while window 3 is read.
    let uses = shuffle.next_uses(3);
    let last = (0..12).max_by_key(|&shard| (uses[shard], shard)).unwrap();
    dataset.enter_window(&shuffle, 3);
    let order: Vec<usize> = (0..12).filter(|shard| *shard != last).collect();
    for &shard in &order {
        dataset.shard(shard).unwrap();
    }
    // Release all shards but those of the current and the next window, then fetch the last shard: it must replace the
    // shard that is needed latest among the others.
    dataset.enter_window(&shuffle, 3);
    dataset.shard(last).unwrap();
    let evicted: Vec<usize> = order.iter().copied().filter(|&shard| !lab.copy(shard).exists()).collect();
    let latest_kept = order.iter().filter(|shard| !evicted.contains(shard)).map(|&shard| uses[shard]).max().unwrap();
    assert!(!evicted.is_empty());
    assert!(evicted.iter().all(|&shard| uses[shard] >= latest_kept), "{evicted:?} of {uses:?}");
}

#[test]
fn a_limit_too_small_for_the_shuffle_is_rejected_with_a_sufficient_one() {
    let lab = Lab::new();
    let needed = needed_bytes(&lab.manifest, 3);
    let dataset = lab.open(Some(needed - 1));
    let error = dataset.shuffle_window(Some(3)).unwrap_err();
    assert!(error.is_configuration());
    assert!(error.to_string().contains(&format!("data.cache_limit={needed} or more")), "{error}");
    assert_eq!(dataset.shuffle_window(Some(2)).unwrap(), 2);
    let two = needed_bytes(&lab.manifest, 1);
    let error = lab.open(Some(two - 1)).shuffle_window(None).unwrap_err().to_string();
    assert!(
        error.contains(&format!("{} bytes is too small", two - 1)) && error.contains(&format!("={two} or")),
        "{error}"
    );
    assert_eq!(largest_window(&lab.manifest, Some(two)), Some(1));
    assert_eq!(largest_window(&lab.manifest, None), Some(0));
}

#[test]
fn a_disk_too_small_for_the_shuffle_is_rejected() {
    let lab = Lab::new();
    let mut manifest = lab.manifest.clone();
    manifest.shards[0].bytes = 1 << 60;
    write_json(&lab.folder.path().join("store/manifest.json"), &manifest);
    let error = lab.open(None).shuffle_window(None).unwrap_err();
    assert!(error.is_configuration());
    assert!(error.to_string().contains("set data.cache_limit below"), "{error}");
}

#[test]
fn a_cached_shard_with_a_flipped_bit_is_fetched_again() {
    let lab = Lab::new();
    let last_byte = lab.manifest.shards[0].bytes as usize - 1;
    lab.open(None).shard(0).unwrap();
    // Flip a bit before the shard is opened ...
    flip_bit(&lab.copy(0), last_byte);
    let dataset = lab.open(None);
    (0..9).for_each(|sample| check_record(&dataset, sample).unwrap());
    // ... and while it is open, in the mirrored view of the last record.
    flip_bit(&lab.copy(0), last_byte);
    dataset.with_record(8, View::Mirrored, |record| assert_eq!(record.source_id, 16)).unwrap();
    assert_eq!(std::fs::read(lab.copy(0)).unwrap(), std::fs::read(lab.original(0)).unwrap());
    // An intact copy is read without accessing the store.
    std::fs::remove_file(lab.original(0)).unwrap();
    check_record(&lab.open(None), 3).unwrap();
}

#[test]
fn a_shard_damaged_in_the_store_is_named_and_not_cached() {
    let lab = Lab::new();
    flip_bit(&lab.original(0), lab.manifest.shards[0].bytes as usize - 1);
    let error = lab.open(None).shard(0).unwrap_err().to_string();
    assert!(error.contains("shard-00000.safetensors") && error.contains("record 8"), "{error}");
    assert_eq!(lab.used(), 0);
}

#[test]
fn a_cache_filled_by_another_job_is_reported() {
    let lab = Lab::new();
    let limit = needed_bytes(&lab.manifest, 1);
    // Shards in use by another job.
    let held: Vec<_> = [0, 6].map(|shard| lab.open(Some(limit)).shard(shard).unwrap()).into();
    let start = Instant::now();
    let error = lab.open(Some(limit)).shard(1).unwrap_err().to_string();
    assert!(error.contains("all of it is in use") && error.contains("data.cache_dir"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(60));
    drop(held);
    lab.open(Some(limit)).shard(1).unwrap();
    assert!(lab.used() <= limit);
}

#[test]
fn two_jobs_share_a_folder_and_fetch_each_shard_once() {
    let lab = Lab::new();
    let (one, two) = (lab.open(None), lab.open(None));
    let inode = |shard| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(lab.copy(shard)).unwrap());
    std::thread::scope(|scope| {
        for dataset in [&one, &two] {
            scope.spawn(move || (0..12).for_each(|shard| drop(dataset.shard(shard).unwrap())));
        }
    });
    let before: Vec<u64> = (0..12).map(inode).collect();
    (0..12).for_each(|shard| drop(lab.open(None).shard(shard).unwrap()));
    assert_eq!(before, (0..12).map(inode).collect::<Vec<_>>());
    assert_eq!(lab.used(), needed_bytes(&lab.manifest, 0), "files other than the shards are left");
}

const PART_VARIABLE: &str = "ARINAR_TEST_HOLD_PART";

/// Not a test: takes the lock of a downloading process and waits.
#[test]
#[ignore = "run by another test in a separate process"]
fn hold_partial_file() {
    let part = std::env::var_os(PART_VARIABLE).unwrap();
    let file = File::options().create(true).truncate(false).write(true).open(&part).unwrap();
    file.lock().unwrap();
    file.set_len(1 << 20).unwrap();
    println!("locked");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_process_killed_during_a_download_leaves_no_lock() {
    let lab = Lab::new();
    let part = lab.copy(0).with_extension("safetensors.part");
    lab.open(None).shuffle_window(None).unwrap(); // turns the folder into a cache
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cache::hold_partial_file", "--ignored", "--nocapture"])
        .env(PART_VARIABLE, &part)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("locked")));
    let waiting = std::thread::spawn({
        let dataset = lab.open(None);
        move || check_record(&dataset, 0)
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!waiting.is_finished(), "the reader does not wait for the other process");
    child.kill().unwrap();
    child.wait().unwrap();
    waiting.join().unwrap().unwrap();
    assert!(!part.exists());
    assert_eq!(std::fs::read(lab.copy(0)).unwrap(), std::fs::read(lab.original(0)).unwrap());
}

#[test]
fn leftovers_of_killed_processes_are_deleted_when_space_is_needed() {
    let lab = Lab::new();
    let folder = lab.copy(0).parent().unwrap().to_path_buf();
    lab.open(None).shuffle_window(None).unwrap(); // turns the folder into a cache
    std::fs::create_dir_all(&folder).unwrap();
    let limit = needed_bytes(&lab.manifest, 1);
    let leftovers: Vec<PathBuf> =
        ["shard-00007.safetensors.part", "shard-00003.safetensors.damaged"].map(|name| folder.join(name)).into();
    leftovers.iter().for_each(|path| std::fs::write(path, vec![0; limit as usize / 2]).unwrap());
    lab.open(Some(limit)).shard(0).unwrap();
    assert!(lab.used() <= limit && !leftovers.iter().all(|path| path.exists()));
}

#[test]
fn manifests_with_names_outside_the_folder_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write_synthetic_dataset(folder.path(), &[4]);
    for name in
        ["../shard", "/etc/passwd", ".hidden", "a/b", "", "thesis.pdf", "0123456789ABCDEF", "shard-1.safetensors"]
    {
        for id in [false, true] {
            let mut other = manifest.clone();
            if id {
                other.dataset_id = name.to_owned()
            } else {
                other.shards[0].name = name.to_owned()
            }
            write_json(&folder.path().join("manifest.json"), &other);
            let error = Dataset::open(text(folder.path())).unwrap_err().to_string();
            let problem = if id { "is not a dataset id" } else { "is not the name of a shard" };
            assert!(error.contains(problem), "{error}");
        }
    }
}

/// Returns every file below a folder with its contents.
fn all_files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap().file_type();
        if kind.is_dir() {
            files.extend(all_files(&path));
        } else {
            let contents = if kind.is_symlink() { b"a link".to_vec() } else { std::fs::read(&path).unwrap() };
            files.push((path, contents));
        }
    }
    files.sort();
    files
}

#[test]
fn a_folder_with_unrelated_files_is_rejected_as_a_cache() {
    let lab = Lab::new();
    let home = lab.cache();
    for file in [".ssh/id_rsa", "docs/thesis.pdf"] {
        std::fs::create_dir_all(home.join(file).parent().unwrap()).unwrap();
        std::fs::write(home.join(file), file).unwrap();
    }
    let before = all_files(&home);
    let limit = Some(needed_bytes(&lab.manifest, 1));
    let dataset = lab.open(limit);
    let attempts: [&dyn Fn() -> Result<(), DataError>; 3] =
        [&|| dataset.shuffle_window(None).map(drop), &|| dataset.shard(0).map(drop), &|| check_record(&dataset, 3)];
    for attempt in attempts {
        let error = attempt().unwrap_err();
        assert!(error.is_configuration() && error.to_string().contains("data.cache_dir"), "{error}");
        assert_eq!(all_files(&home), before);
    }
}

#[test]
fn unrelated_files_in_a_cache_are_neither_deleted_nor_changed() {
    let lab = Lab::new();
    let limit = needed_bytes(&lab.manifest, 1);
    let dataset = lab.open(Some(limit));
    dataset.shuffle_window(None).unwrap();
    let elsewhere = lab.folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("shard-00000.safetensors"), "of another disk").unwrap();
    // Each is larger than the cache's limit and older than every cached shard.
    for file in ["docs/thesis.pdf", "docs/shard-00000.safetensors", &format!("{DATASET_ID}/notes.part"), "loose.part"] {
        let path = lab.cache().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, vec![7; 2 * limit as usize]).unwrap();
    }
    std::os::unix::fs::symlink(&elsewhere, lab.cache().join("00000000deadbeef")).unwrap();
    let ours = |path: &Path| path.to_string_lossy().contains(&format!("{DATASET_ID}/shard-"));
    let unrelated = || -> Vec<_> { all_files(lab.folder.path()).into_iter().filter(|(path, _)| !ours(path)).collect() };
    let before = unrelated();
    for shard in 0..12 {
        drop(dataset.shard(shard).unwrap());
        dataset.enter_window(&dataset.shuffle(3, 1), shard as u64 + 100);
    }
    assert_eq!(unrelated(), before);
    let copies = (0..12).filter(|&shard| lab.copy(shard).exists()).count();
    assert!((1..12).contains(&copies), "{copies} copies: nothing was evicted");
    // A symlink in place of a partial file, or of the dataset's folder, would redirect the download.
    let thesis = lab.cache().join("docs/thesis.pdf");
    let missing = (0..12).find(|&shard| !lab.copy(shard).exists()).unwrap();
    let part = lab.copy(missing).with_extension("safetensors.part");
    std::os::unix::fs::symlink(&thesis, &part).unwrap();
    assert!(lab.open(Some(limit)).shard(missing).is_err());
    std::fs::remove_file(&part).unwrap();
    std::fs::rename(lab.cache().join(DATASET_ID), lab.cache().join("moved")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, lab.cache().join(DATASET_ID)).unwrap();
    for shard in [0, missing] {
        let error = lab.open(Some(limit)).shard(shard).unwrap_err().to_string();
        assert!(error.contains("is a link"), "{error}");
    }
    assert_eq!(std::fs::read(&thesis).unwrap(), vec![7; 2 * limit as usize]);
    assert_eq!(std::fs::read(elsewhere.join("shard-00000.safetensors")).unwrap(), b"of another disk");
}

fn write_json(path: &Path, manifest: &Manifest) {
    std::fs::write(path, serde_json::to_vec(manifest).unwrap()).unwrap();
}
