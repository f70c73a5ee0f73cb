//! A chaos test of a run in a bucket on the demo's dataset: a tenth of all requests fail in every way in which a store
//! can fail, ranks are killed in a step, in an upload and in a download, and a bit of the cache flips. The run must end
//! bit-identical to an undisturbed one, with the same samples in every step.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arinar_data::format::Manifest;
use arinar_tests::s3::{BLOCK, Fault, Faults, S3Server};
use arinar_tests::support::trainer::{ProcessOutput, launch, trainer};

const BUCKET: &str = "chaos";
const GLOBAL_BATCH: u64 = 32;
/// Slightly more than three epochs.
const STEPS: u64 = 185;
/// All transient faults.
const KINDS: [Fault; 7] = [
    Fault::InternalError,
    Fault::SlowDown,
    Fault::Reset,
    Fault::LostAnswer,
    Fault::Stall(Duration::from_secs(2)),
    Fault::Truncate,
    Fault::FlipBit,
];
/// Timeout of every wait.
const TIMEOUT: Duration = Duration::from_secs(120);

const CONFIG: &str = "seed: 5
run: {name: chaos, dir: 's3://chaos/run', log_dir: LOGS}
model:
  image_size: 32
  classes: 9
  vae: {stride: 8, channels: 16, scale: 1.0020548}
  outer: {kind: mar, width: 32, heads: 4, encoder_depth: 1, decoder_depth: 1, buffer_tokens: 4,
          mask_ratio_min: 0.7, dropout: 0.1, label_drop: 0.1}
  head: {kind: arinar, width: 32, depth: 1, heads: 2, gaussians: 2}
data: {url: 's3://chaos/emoji', cache_dir: CACHE, cache_limit: 2MB}
optim: {lr_per_256: 0.04, betas: [0.9, 0.95], weight_decay: 0.02, grad_clip: 3.0, ema: 0.9,
        schedule: constant, warmup_epochs: 0.5, epochs: 400}
batch: {global: 32}
checkpoint: {every: 15 steps, keep_last: 2, spool_dir: SPOOL}
train: {threads: 1}
log: {every: 1 step, format: text}
";

/// A store with the dataset, and a machine's local files.
struct World {
    folder: tempfile::TempDir,
    server: S3Server,
}

impl World {
    /// Encodes the demo's images into the store, or copies the dataset of another store.
    fn new(encoded: Option<&World>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = S3Server::start(&folder.path().join("store"));
        server.create_bucket(BUCKET);
        let world = Self { folder, server };
        match encoded {
            None => world.encode(),
            Some(other) => {
                let dataset = |world: &World| world.server.object_path(BUCKET, "emoji");
                let copied = Command::new("cp").arg("-r").arg(dataset(other)).arg(dataset(&world)).status().unwrap();
                assert!(copied.success());
            }
        }
        let path = |name: &str| world.path(name).display().to_string();
        let config =
            CONFIG.replace("LOGS", &path("logs")).replace("CACHE", &path("cache")).replace("SPOOL", &path("spool"));
        std::fs::write(world.path("chaos.yaml"), config).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn encode(&self) {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut command = launch(2);
        command.arg(trainer().with_file_name("arinar-data")).args(["encode", "--images"]);
        command.arg(repository.join("tests/data/noto-emoji-32.tar")).args(["--image-size", "32", "--vae"]);
        command.arg(repository.join("data/assets/emoji-vae.safetensors"));
        command.args(["--out", "s3://chaos/emoji", "--shard-bytes", "300KB"]).envs(self.server.environment());
        ProcessOutput::of(command.output().unwrap()).succeeded();
    }

    fn train(&self) -> Command {
        let mut command = launch(2);
        command.arg(trainer()).arg("--config").arg(self.path("chaos.yaml"));
        command.arg("--set").arg(format!("train.max_steps={STEPS}"));
        command.envs(self.server.environment()).env("ARINAR_SAMPLE_LOG", self.path("samples"));
        command
    }

    /// Starts training, waits until `condition` holds, and kills a rank with SIGKILL.
    fn train_until(&self, rank: usize, mut condition: impl FnMut(&World) -> bool) {
        let output = |name: &str| std::fs::File::options().create(true).append(true).open(self.path(name)).unwrap();
        let mut mpirun = self.train().stdout(Stdio::from(output("stdout"))).stderr(output("stderr")).spawn().unwrap();
        let started = Instant::now();
        while !condition(self) {
            let status = mpirun.try_wait().unwrap();
            assert!(status.is_none() && started.elapsed() < TIMEOUT, "{status:?}: {}", self.output());
            std::thread::sleep(Duration::from_millis(1));
        }
        kill_rank(&mpirun, rank);
        assert!(!mpirun.wait().unwrap().success());
    }

    fn output(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.path(name)).unwrap_or_default();
        format!("{}\n{}", read("stdout"), read("stderr"))
    }

    /// Returns the last step whose samples are logged.
    fn steps(&self) -> u64 {
        self.samples().keys().next_back().copied().unwrap_or(0)
    }

    /// Returns the samples of each step as "sample epoch".
    fn samples(&self) -> BTreeMap<u64, BTreeSet<String>> {
        let mut samples = BTreeMap::<u64, BTreeSet<String>>::new();
        let log = std::fs::read_to_string(self.path("samples")).unwrap_or_default();
        // Only the last line may be incomplete after a kill.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            let (step, sample) = line.split_once(' ').unwrap();
            samples.entry(step.parse().unwrap()).or_default().insert(sample.to_owned());
        }
        samples
    }

    /// Returns the tensor files of the final checkpoint in the bucket.
    fn tensors(&self) -> BTreeMap<String, Vec<u8>> {
        let folder = self.server.object_path(BUCKET, &format!("run/step-{STEPS:08}"));
        assert!(folder.join("manifest.json").is_file(), "{}", self.output());
        let mut tensors = BTreeMap::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                tensors.insert(name, std::fs::read(&path).unwrap());
            }
        }
        assert_eq!(tensors.len(), 6);
        tensors
    }

    /// Returns the path of a cached shard, if there is one.
    fn cached_shard(&self) -> Option<PathBuf> {
        let dataset = std::fs::read_dir(self.path("cache")).ok()?.find_map(|entry| {
            let path = entry.ok()?.path();
            path.is_dir().then_some(path)
        })?;
        let mut shards: Vec<PathBuf> =
            std::fs::read_dir(dataset).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        shards.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        shards.sort();
        shards.into_iter().next()
    }
}

fn kill_rank(mpirun: &Child, rank: usize) {
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", mpirun.id())).unwrap();
    let ranks: Vec<&str> = children.split_whitespace().collect();
    assert!(Command::new("kill").args(["-9", ranks[rank % ranks.len()]]).status().unwrap().success());
}

/// Returns a seed that differs between runs and prints it, so that a failure can be investigated.
fn random_seed() -> u64 {
    let number = u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos()) / 1000;
    println!("chaos seed {number}");
    number
}

#[test]
fn chaos_does_not_change_the_result() {
    let undisturbed = World::new(None);
    let manifest = undisturbed.server.object_path(BUCKET, "emoji/manifest.json");
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    assert!(manifest.shards.iter().map(|shard| shard.bytes).sum::<u64>() > 2_000_000, "the cache must be too small");
    let disturbed = World::new(Some(&undisturbed));
    ProcessOutput::of(undisturbed.train().output().unwrap()).succeeded();

    let seed = random_seed();
    disturbed.server.set_faults(Faults {
        of_ten: 1,
        kinds: KINDS.to_vec(),
        seed,
        // Slow enough for a kill during a download.
        bytes_per_second: 4_000_000,
        ..Faults::default()
    });
    let rank = (seed % 2) as usize;
    let traffic = |world: &World, below: &str| world.server.counters().below(&format!("{BUCKET}/{below}"));
    // Kill a rank in a step of the first epoch.
    let step = 5 + seed % 40;
    disturbed.train_until(rank, |world| world.steps() >= step);
    let shard = disturbed.cached_shard().unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    let position = bytes.len() - 1 - (seed as usize % (bytes.len() / 2));
    bytes[position] ^= 1 << (seed % 8);
    std::fs::write(&shard, bytes).unwrap();
    // Kill a rank in an upload, when the store receives data of a checkpoint.
    let before = disturbed.steps() + 20;
    let mut uploaded = None;
    disturbed.train_until(rank + 1, |world| {
        let received = traffic(world, "run/step-").received;
        if world.steps() < before {
            return false;
        }
        received > *uploaded.get_or_insert(received)
    });
    // Kill a rank in a download, when a shard is requested.
    let mut downloaded = None;
    let before = disturbed.steps() + 20;
    disturbed.train_until(rank, |world| {
        let requests = traffic(world, "emoji/shard-").requests;
        if world.steps() < before {
            return false;
        }
        requests > *downloaded.get_or_insert(requests)
    });
    ProcessOutput::of(disturbed.train().output().unwrap()).succeeded();

    let counters = disturbed.server.counters();
    println!("requests: {:?}, faults: {:?}", counters.requests, counters.faults);
    assert_eq!(counters.faults.len(), KINDS.len(), "not every kind of fault occurred");
    // Requests that a killed rank did not finish may not be counted, so there may be more faults.
    assert!(counters.faults() >= counters.requests.values().map(|requests| requests / BLOCK).sum());
    assert!(undisturbed.tensors() == disturbed.tensors(), "the runs differ");
    let (expected, seen) = (undisturbed.samples(), disturbed.samples());
    assert_eq!(expected.len() as u64, STEPS);
    for (step, samples) in &expected {
        assert_eq!(samples.len() as u64, GLOBAL_BATCH, "step {step}");
        assert_eq!(seen.get(step), Some(samples), "step {step}");
    }
    // An epoch contains each of the 1,906 samples once.
    let in_order: Vec<&String> = expected.values().flatten().collect();
    for epoch in 0..3 {
        let ending = format!(" {epoch}");
        assert_eq!(in_order.iter().filter(|sample| sample.ends_with(&ending)).count(), 1906);
    }
}
