//! The end of the run on rank 0: writes the manifest and the summary.

use super::encoder::RecordEncoder;
use super::error::EncodeError;
use super::job::Job;
use super::open_shard::BadPicture;
use super::share::Share;
use super::stored_shard::StoredShard;
use crate::format::facts::ImageFacts;
use crate::format::manifest::{FORMAT_VERSION, Manifest};
use crate::format::names::{MANIFEST_NAME, TOKENIZER_NAME, dataset_id, is_shard_name};
use crate::progress::Progress;
use crate::text::{bytes_text, duration_text};
use arinar_store::lease::Lease;

/// Maximum number of unusable pictures to list.
const MAX_LISTED: usize = 20;

impl<E: RecordEncoder> Job<E> {
    /// Writes the manifest if all shards are complete, and returns a summary.
    pub(super) fn finish(&self, shares: Vec<Share>, progress: &Progress, lease: &Lease) -> Result<String, EncodeError> {
        let kept: u64 = shares.iter().map(|share| share.kept).sum();
        let mut undone: Vec<BadPicture> = Vec::new();
        let mut shards: Vec<StoredShard> = Vec::new();
        for share in shares {
            undone.extend(share.bad);
            shards.extend(share.shards);
        }
        shards.sort_by_key(|shard| shard.shard);
        if !undone.is_empty() {
            return Err(EncodeError::BadPictures(self.bad_pictures_text(undone, shards.len())));
        }
        let mut skipped: Vec<BadPicture> = shards.iter().flat_map(|shard| shard.bad.clone()).collect();
        skipped.sort_by_key(|bad| bad.source_id);
        let manifest = self.manifest(&shards, &skipped);
        if manifest.num_samples == 0 {
            let text = format!(
                "none of the {} pictures can be used, so there is no dataset to make",
                self.encoder.pictures().len()
            );
            return Err(EncodeError::BadPictures(text));
        }
        lease.check()?;
        self.store.remove_unfinished(|name| is_shard_name(name) || [MANIFEST_NAME, TOKENIZER_NAME].contains(&name))?;
        if let Some(weights) = self.encoder.tokenizer()? {
            self.store.put(TOKENIZER_NAME, weights)?;
        }
        lease.check()?;
        manifest.write(&self.store)?;
        Ok(self.summary(&manifest, &skipped, kept, progress))
    }

    fn manifest(&self, shards: &[StoredShard], skipped: &[BadPicture]) -> Manifest {
        let mut class_counts = vec![0; self.encoder.pictures().classes().len()];
        let mut identity = self.plan.encode_id.clone();
        for shard in shards {
            shard.class_counts.iter().for_each(|(&class, count)| class_counts[class as usize] += count);
            identity.push_str(&shard.facts.xxh3_128);
        }
        Manifest {
            version: FORMAT_VERSION,
            dataset_id: dataset_id(&identity),
            encode_id: self.plan.encode_id.clone(),
            seed: self.settings.seed,
            num_samples: shards.iter().map(|shard| shard.facts.count).sum(),
            num_sources: self.encoder.pictures().len() as u64,
            classes: self.encoder.pictures().classes().to_vec(),
            class_counts,
            image: ImageFacts { size: self.settings.image_size },
            vae: self.settings.vae.clone(),
            skipped: skipped.iter().map(|bad| bad.name.clone()).collect(),
            shards: shards.iter().map(|shard| shard.facts.clone()).collect(),
        }
    }

    fn bad_pictures_text(&self, mut bad: Vec<BadPicture>, whole_shards: usize) -> String {
        bad.sort_by_key(|bad| bad.source_id);
        let (shards, total) = (self.plan.num_shards(), self.encoder.pictures().len());
        format!(
            "{} of {total} pictures cannot be used:\n{}\n\
             no dataset was made; {whole_shards} of {shards} shards are done and will be kept; \
             repair the pictures or pass --skip-bad, and run the command again",
            bad.len(),
            bad_list(&bad)
        )
    }

    fn summary(&self, manifest: &Manifest, skipped: &[BadPicture], kept: u64, progress: &Progress) -> String {
        let elapsed = progress.elapsed();
        let encoded = manifest.num_sources - kept;
        let speed = encoded as f64 / elapsed.as_secs_f64().max(1e-3);
        let mut text = format!(
            "{} pictures of {} classes in {} shards, {}, dataset {} at {}",
            manifest.num_samples,
            manifest.classes.len(),
            manifest.shards.len(),
            bytes_text(manifest.shards.iter().map(|shard| shard.bytes).sum()),
            manifest.dataset_id,
            self.store.url(),
        );
        if kept > 0 {
            text.push_str(&format!("\n{kept} were kept from an earlier run"));
        }
        if encoded > 0 {
            text.push_str(&format!("\n{encoded} encoded in {} ({speed:.1}/s)", duration_text(elapsed)));
        }
        if !skipped.is_empty() {
            text.push_str(&format!("\n{} left out because they cannot be used:\n{}", skipped.len(), bad_list(skipped)));
        }
        text
    }
}

fn bad_list(bad: &[BadPicture]) -> String {
    let mut lines: Vec<String> =
        bad.iter().take(MAX_LISTED).map(|bad| format!("  {}: {}", bad.name, bad.reason)).collect();
    if bad.len() > MAX_LISTED {
        lines.push(format!("  and {} more", bad.len() - MAX_LISTED));
    }
    lines.join("\n")
}
