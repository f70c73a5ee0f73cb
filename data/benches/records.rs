//! Measures the verified records per second from a warm cache on one thread, read in random order into a batch.
//!
//! The benchmark writes its own dataset with moments of [64, 16, 16]. A view is then a record of 32 KiB, like the
//! records that `ops/bench/loaders.py` passes to other loaders. That script runs all loaders and prints their ratios.
//!
//! Environment variables and their defaults: `RECORDS` (16384), `SECONDS` (10), `FOLDER` (a temporary one).

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use arinar_data::Reporter;
use arinar_data::commands::bench::{open_shards, read_records};
use arinar_data::format::{FORMAT_VERSION, ImageFacts, Manifest, ShardFacts, ShardWriter, VaeFacts, xxh3_hex};
use arinar_data::read::Dataset;
use arinar_model::vae::VaeConfig;
use arinar_store::Store;

/// Shape of the moments: [2C, H, W].
const SHAPE: [usize; 3] = [64, 16, 16];
/// Number of records in a shard, whose two views have 64 MiB.
const PER_SHARD: u64 = 1024;

fn main() -> Result<()> {
    let (records, seconds) = (setting("RECORDS", 16_384), setting("SECONDS", 10));
    let temporary = tempfile::tempdir()?;
    let folder = std::env::var_os("FOLDER").map_or_else(|| temporary.path().to_owned(), Into::into);
    let url = folder.display().to_string();
    if !folder.join("manifest.json").exists() {
        make(&folder, records)?;
    }
    let dataset = Dataset::open(&url)?;
    let reporter = Reporter::without_progress();
    let (opened, _) = open_shards(&dataset, Duration::MAX, &reporter)?;
    // Warm up the caches and let the clock speed settle.
    read_records(&dataset, &opened, Duration::from_secs(1), &reporter)?;
    let measure = read_records(&dataset, &opened, Duration::from_secs(seconds), &reporter)?;
    println!(
        "arinar: {:.0} records/s of {} bytes, verified, {:.2} GB/s, one thread, {} records",
        measure.per_second(),
        2 * SHAPE.iter().product::<usize>(),
        measure.bytes_per_second() / 1e9,
        dataset.len()
    );
    Ok(())
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).filter(|&value| value > 0).unwrap_or(default)
}

/// Writes a dataset whose records all differ.
fn make(folder: &Path, records: u64) -> Result<()> {
    let store = Store::open(&folder.display().to_string())?;
    let mut shards = Vec::new();
    for start in (0..records).step_by(PER_SHARD as usize) {
        let count = PER_SHARD.min(records - start);
        let mut writer = ShardWriter::new(SHAPE);
        for record in start..start + count {
            let (original, mirrored) = (bytes_of(2 * record), bytes_of(2 * record + 1));
            writer.push((record % 1000) as i64, record as i64, &original, &mirrored);
        }
        let file = writer.finish("bench")?;
        let name = format!("shard-{:05}.safetensors", shards.len());
        let facts = ShardFacts { name: name.clone(), bytes: file.len() as u64, count, xxh3_128: xxh3_hex(&file) };
        store.put(&name, file)?;
        shards.push(facts);
    }
    let config = VaeConfig { embed_dim: SHAPE[0] as i64 / 2, ..VaeConfig::kl16() };
    let (channels, stride) = (config.embed_dim, config.stride());
    let manifest = Manifest {
        version: FORMAT_VERSION,
        dataset_id: "0".repeat(16),
        encode_id: "bench".to_owned(),
        seed: 0,
        num_samples: records,
        num_sources: records,
        classes: (0..1000).map(|class| class.to_string()).collect(),
        class_counts: vec![0; 1000],
        image: ImageFacts { size: 16 * stride as u32 },
        vae: VaeFacts { config, xxh3_128: String::new(), scale: 0.2325, channels, stride },
        skipped: Vec::new(),
        shards,
    };
    Ok(manifest.write(&store)?)
}

/// Returns the unique 32 KiB of a view.
fn bytes_of(number: u64) -> Vec<u8> {
    let word = |index: u64| (number << 20 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..SHAPE.iter().product::<usize>() as u64 / 4).flat_map(word).collect()
}
