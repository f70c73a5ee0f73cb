//! `arinar-data simulate`: predicts the downloads, the cache size and the shuffle of a job from the manifest alone.

mod egress;
mod quality;

use clap::Args;
use serde::Serialize;

use crate::byte_size::parse_bytes;
use crate::error::DataError;
use crate::format::manifest::Manifest;
use crate::read::batch_layout::BatchLayout;
use crate::read::cache::window::needed_bytes;
use crate::read::shuffle::Shuffle;
use crate::text::bytes_text;

pub use egress::egress;
pub use quality::{Quality, quality};

/// Number of epochs to simulate: the first with an empty cache, the others with a full one.
const EPOCHS: u64 = 4;

/// Options of `arinar-data simulate`.
#[derive(Args, Clone, Debug)]
pub struct SimulateArgs {
    /// Read the manifest of this dataset
    #[arg(long, value_name = "URL")]
    pub data: String,
    /// Simulate this number of machines, each with a cache for all of its ranks
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub nodes: usize,
    /// Simulate this number of ranks on each machine
    #[arg(long, default_value_t = 1, value_name = "R")]
    pub ranks_per_node: usize,
    /// Use this number of samples per step, over all ranks
    #[arg(long, default_value_t = 256, value_name = "G")]
    pub global_batch: usize,
    /// Limit the size of each machine's cache [default: no limit]
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub cache_limit: Option<u64>,
    /// Shuffle this number of shards together, 0 for all; separate several values by commas
    #[arg(long, default_value = "0", value_delimiter = ',', value_name = "W")]
    pub window: Vec<u64>,
    /// Seed the order of the samples
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// Prediction for one window size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Number of shards shuffled together; 0 for all.
    pub window: u64,
    /// Bytes that the cache of a node must hold: the current window and the next one.
    pub cache_needed: u64,
    /// Whether the cache limit allows this window. If not, training refuses to start.
    pub fits: bool,
    /// Bytes that each node downloads in the first epoch, with an empty cache; null if the window does not fit.
    pub egress_first_epoch: Option<u64>,
    /// Average bytes that each node downloads in a later epoch; null if the window does not fit.
    pub egress_later_epochs: Option<u64>,
    /// Quality of the shuffle.
    pub quality: Quality,
}

/// Simulates every requested window, and the full shuffle for comparison.
///
/// # Errors
/// Returns [`DataError::Batch`] if the ranks cannot share the global batch evenly.
pub fn simulate(manifest: &Manifest, args: &SimulateArgs) -> Result<Vec<Finding>, DataError> {
    let world = args.nodes * args.ranks_per_node;
    BatchLayout::new(args.global_batch, 0, world, 1)?;
    let mut windows = args.window.clone();
    if !windows.contains(&0) {
        windows.push(0);
    }
    Ok(windows.into_iter().map(|window| finding(manifest, args, window)).collect())
}

fn finding(manifest: &Manifest, args: &SimulateArgs, window: u64) -> Finding {
    let shuffle = Shuffle::new(manifest.shards.iter().map(|shard| shard.count), args.seed, window);
    let cache_needed = needed_bytes(manifest, window);
    let fits = args.cache_limit.is_none_or(|limit| cache_needed <= limit);
    let sizes: Vec<u64> = manifest.shards.iter().map(|shard| shard.bytes).collect();
    let fetched = fits.then(|| egress(&shuffle, &sizes, args.cache_limit, EPOCHS));
    Finding {
        window,
        cache_needed,
        fits,
        egress_first_epoch: fetched.as_ref().map(|fetched| fetched[0]),
        egress_later_epochs: fetched.as_ref().map(|fetched| fetched[1..].iter().sum::<u64>() / (EPOCHS - 1)),
        quality: quality(manifest, &shuffle, args.global_batch, args.seed),
    }
}

/// Formats the findings as text.
pub fn report(manifest: &Manifest, args: &SimulateArgs, findings: &[Finding]) -> String {
    let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    let world = args.nodes * args.ranks_per_node;
    let limit = args.cache_limit.map_or_else(|| "no limit".to_owned(), bytes_text);
    let mut lines = vec![
        format!("dataset  {} samples in {} shards, {}", manifest.num_samples, manifest.shards.len(), bytes_text(bytes)),
        format!(
            "job      {} nodes x {} ranks, global batch {} ({} per rank), {:.1} steps per epoch, cache {limit} per node",
            args.nodes,
            args.ranks_per_node,
            args.global_batch,
            args.global_batch / world,
            manifest.num_samples as f64 / args.global_batch as f64
        ),
    ];
    lines.extend(findings.iter().flat_map(|finding| finding.lines(bytes, args.nodes as u64)));
    lines.join("\n")
}

impl Finding {
    fn lines(&self, dataset: u64, nodes: u64) -> Vec<String> {
        let title = match self.window {
            0 => "full shuffle".to_owned(),
            1 => "window of 1 shard".to_owned(),
            shards => format!("window of {shards} shards"),
        };
        let verdict = if self.fits { "fits" } else { "does not fit, training would refuse to start" };
        let mut lines = vec![title, format!("  cache need   {} per node: {verdict}", bytes_text(self.cache_needed))];
        for (epoch, fetched) in [("first epoch", self.egress_first_epoch), ("later epochs", self.egress_later_epochs)] {
            let Some(fetched) = fetched else { continue };
            let times = fetched as f64 / dataset.max(1) as f64;
            let all = bytes_text(nodes.saturating_mul(fetched));
            lines.push(format!(
                "  {epoch:<12} {} per node ({times:.2} x the dataset), {all} in total",
                bytes_text(fetched)
            ));
        }
        let quality = &self.quality;
        lines.push(format!(
            "  a batch      from {:.1} shards; the largest part from one shard is {:.1}%",
            quality.shards_per_batch,
            100.0 * quality.largest_share
        ));
        if let Some(classes) = quality.classes_per_batch {
            lines.push(format!("               of {classes:.1} classes"));
        }
        lines.push(format!(
            "  next epoch   {:.2}% of a batch's pairs of samples were in one window before",
            100.0 * quality.pairs_from_one_window
        ));
        lines
    }
}
