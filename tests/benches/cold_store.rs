//! Measures the demo's training from a cold S3 store behind a simulated link of 1 Gbit/s: the share of the step time
//! spent waiting for data, and how many times the dataset is fetched.
//!
//!     cargo bench -p arinar-tests --bench cold_store
//!
//! The server runs in this process, on the same cores as the two ranks.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use arinar_data::format::Manifest;
use arinar_tests::s3::{Faults, S3Server};
use arinar_tests::support::trainer::{ProcessOutput, launch, read_curve, trainer};

const BUCKET: &str = "cold";
const GIGABIT_PER_SECOND: u64 = 125_000_000;
/// Ten epochs of 1,906 samples at 32 per step, rounded up.
const STEPS: u64 = 596;
const EPOCHS: f64 = 10.0;

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let server = S3Server::start(&folder.path().join("store"));
    server.create_bucket(BUCKET);
    let mut encode = launch(2);
    encode.arg(trainer().with_file_name("arinar-data")).args(["encode", "--images"]);
    encode.arg(repository.join("tests/data/noto-emoji-32.tar")).args(["--image-size", "32", "--vae"]);
    encode.arg(repository.join("data/assets/emoji-vae.safetensors"));
    encode.args(["--out", &format!("s3://{BUCKET}/emoji"), "--shard-bytes", "300KB"]).envs(server.environment());
    ProcessOutput::of(encode.output().unwrap()).succeeded();
    let manifest = std::fs::read(server.object_path(BUCKET, "emoji/manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
    let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    server.set_faults(Faults { bytes_per_second: GIGABIT_PER_SECOND, ..Faults::default() });
    println!("dataset: {} shards, {bytes} bytes; 2 ranks, {STEPS} steps, a link of 1 Gbit/s", manifest.shards.len());
    for (name, limit) in [("cache holds the dataset", bytes), ("cache holds half of it", bytes / 2)] {
        server.reset_counters();
        let path = |name: &str| -> PathBuf { folder.path().join(format!("{name}-{limit}")) };
        let mut train = launch(2);
        train.arg(trainer()).arg("--config").arg(repository.join("configs/demo.yaml"));
        for value in [
            format!("run.dir={}", path("run").display()),
            format!("run.log_dir={}", path("logs").display()),
            format!("data.url=s3://{BUCKET}/emoji"),
            format!("data.cache_dir={}", path("cache").display()),
            format!("data.cache_limit={limit}"),
            format!("train.max_steps={STEPS}"),
            "checkpoint.every=30min".to_owned(),
        ] {
            train.arg("--set").arg(value);
        }
        ProcessOutput::of(train.envs(server.environment()).output().unwrap()).succeeded();
        let total = |tag: &str| read_curve(&path("logs"), tag).values().map(|&value| f64::from(value)).sum::<f64>();
        let (wait, time) = (total("data_wait"), total("step_time"));
        let sent = server.counters().below(&format!("{BUCKET}/emoji/shard-")).sent as f64;
        println!(
            "{name}: data wait {:.2}% of the step time ({wait:.3} of {time:.1} s), egress {:.3}x the dataset in all, \
             {:.3}x per epoch",
            100.0 * wait / time,
            sent / bytes as f64,
            sent / bytes as f64 / EPOCHS
        );
    }
}
