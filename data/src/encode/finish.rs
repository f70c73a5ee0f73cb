//! Rank 0 ends the encode run: the manifest, or why there is none, and what to tell the user.

use std::collections::BTreeSet;

use arinar_model::vae::vae_safetensors;

use super::plan::Plan;
use super::share::{BadPicture, EncodedShard, Share};
use super::{EncodeError, Job};
use crate::manifest::{FORMAT_VERSION, ImageFacts, MANIFEST_NAME, Manifest, VaeFacts};
use crate::progress::{Progress, bytes_text, duration_text};
use crate::shard::xxh3_hex;
use crate::store::lease::Lease;
use crate::tokenizer;

/// Pictures that do not decode are listed up to this many.
const BAD_LISTED: usize = 20;

impl Job<'_> {
    /// Rank 0: writes the manifest if all shards are there.
    pub(super) fn finish(&self, shares: Vec<Share>, progress: &Progress, lease: &Lease) -> Result<String, EncodeError> {
        let kept: u64 = shares.iter().map(|share| share.kept).sum();
        let mut undone: Vec<BadPicture> = Vec::new();
        let mut shards: Vec<EncodedShard> = Vec::new();
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
            let text = format!("none of the {} pictures decodes, so there is no dataset to make", self.source.len());
            return Err(EncodeError::BadPictures(text));
        }
        lease.check()?;
        if self.args.overwrite {
            self.remove_leftovers()?;
        }
        self.store.remove_unfinished()?;
        tokenizer::keep(&self.store, vae_safetensors(&self.args.vae)?)?;
        lease.check()?;
        manifest.write(&self.store)?;
        Ok(self.summary(&manifest, &skipped, kept, progress))
    }

    /// Shards of the overwritten dataset that this one has no shard for.
    fn remove_leftovers(&self) -> Result<(), EncodeError> {
        let mine: BTreeSet<String> = (0..self.plan.num_shards()).map(Plan::name).collect();
        self.store.delete(MANIFEST_NAME)?;
        for object in self.store.list("")? {
            let name = object.name;
            if name.starts_with("shard-") && name.ends_with(".safetensors") && !mine.contains(&name) {
                self.store.delete(&name)?;
            }
        }
        Ok(())
    }

    fn manifest(&self, shards: &[EncodedShard], skipped: &[BadPicture]) -> Manifest {
        let mut class_counts = vec![0; self.source.classes().len()];
        let mut identity = self.plan.encode_id.clone();
        for shard in shards {
            shard.class_counts.iter().for_each(|(&class, count)| class_counts[class as usize] += count);
            identity.push_str(&shard.facts.xxh3_128);
        }
        Manifest {
            version: FORMAT_VERSION,
            dataset_id: xxh3_hex(identity.as_bytes())[..16].to_owned(),
            encode_id: self.plan.encode_id.clone(),
            seed: self.args.seed,
            num_samples: shards.iter().map(|shard| shard.facts.count).sum(),
            num_sources: self.source.len() as u64,
            classes: self.source.classes().to_vec(),
            class_counts,
            image: ImageFacts { size: self.args.image_size },
            vae: VaeFacts {
                config: self.vae.config.clone(),
                xxh3_128: self.vae.xxh3.clone(),
                scale: self.vae.scale,
                channels: self.vae.config.embed_dim,
                stride: self.vae.config.stride(),
            },
            skipped: skipped.iter().map(|bad| bad.name.clone()).collect(),
            shards: shards.iter().map(|shard| shard.facts.clone()).collect(),
        }
    }

    fn bad_pictures_text(&self, mut bad: Vec<BadPicture>, whole_shards: usize) -> String {
        bad.sort_by_key(|bad| bad.source_id);
        let (shards, total) = (self.plan.num_shards(), self.source.len());
        format!(
            "{} of {total} pictures do not decode:\n{}\n\
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
            text.push_str(&format!("\n{kept} were there from an earlier run"));
        }
        if encoded > 0 {
            text.push_str(&format!("\n{encoded} encoded in {} ({speed:.1}/s)", duration_text(elapsed)));
        }
        if !skipped.is_empty() {
            text.push_str(&format!("\n{} left out because they do not decode:\n{}", skipped.len(), bad_list(skipped)));
        }
        text
    }
}

fn bad_list(bad: &[BadPicture]) -> String {
    let mut lines: Vec<String> =
        bad.iter().take(BAD_LISTED).map(|bad| format!("  {}: {}", bad.name, bad.reason)).collect();
    if bad.len() > BAD_LISTED {
        lines.push(format!("  and {} more", bad.len() - BAD_LISTED));
    }
    lines.join("\n")
}
