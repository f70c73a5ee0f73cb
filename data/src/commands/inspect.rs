//! `arinar-data inspect`: summarizes a dataset.

use crate::format::manifest::Manifest;
use crate::text::bytes_text;

/// Maximum number of classes to list by name.
const MAX_CLASSES: usize = 20;

/// Formats a summary of the manifest of the dataset at `url`.
pub fn summary(manifest: &Manifest, url: &str) -> String {
    let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    let [channels, height, width] = manifest.moments_shape();
    let smallest = manifest.shards.iter().map(|shard| shard.count).min().unwrap_or(0);
    let largest = manifest.shards.iter().map(|shard| shard.count).max().unwrap_or(0);
    let mut lines = vec![
        format!("dataset   {} (format {}) at {url}", manifest.dataset_id, manifest.version),
        format!("samples   {} of {} pictures, original and mirrored", manifest.num_samples, manifest.num_sources),
        format!("pictures  {0}x{0} pixels", manifest.image.size),
        format!("latents   {}x{height}x{width}, scale {}", channels / 2, manifest.vae.scale),
        format!("vae       stride {}, weights XXH3 {}", manifest.vae.stride, manifest.vae.xxh3_128),
        format!(
            "shards    {}, {}, {smallest} to {largest} records each, permutation seed {}",
            manifest.shards.len(),
            bytes_text(bytes),
            manifest.seed
        ),
        format!("classes   {}", manifest.classes.len()),
    ];
    let classes = manifest.classes.iter().zip(&manifest.class_counts).take(MAX_CLASSES);
    lines.extend(classes.map(|(class, count)| format!("  {count:>8}  {class}")));
    if manifest.classes.len() > MAX_CLASSES {
        lines.push(format!("  and {} more (--json lists all)", manifest.classes.len() - MAX_CLASSES));
    }
    if !manifest.skipped.is_empty() {
        lines.push(format!("left out  {} pictures that cannot be used (--json lists them)", manifest.skipped.len()));
    }
    lines.join("\n")
}
