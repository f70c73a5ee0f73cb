//! `--overwrite`: deletes the earlier dataset before the first shard is written, so that nothing of it can stay.

use super::encoder::RecordEncoder;
use super::error::EncodeError;
use super::job::Job;
use super::ownership::EarlierDataset;
use crate::format::names::{MANIFEST_NAME, TOKENIZER_NAME, is_shard_name, shard_name};

impl<E: RecordEncoder> Job<E> {
    /// Deletes the files of the earlier dataset. Returns the URLs of foreign files that are named like shards, which
    /// are kept.
    ///
    /// # Errors
    /// Returns an error, and deletes nothing, if such a file is in the place of a shard of the new dataset.
    pub(super) fn remove_earlier(&mut self) -> Result<Vec<String>, EncodeError> {
        let mut mine = Vec::new();
        let mut foreign = Vec::new();
        for object in self.store.list("")? {
            if !is_shard_name(&object.name) {
                continue;
            }
            let owned = self.earlier.owns_shard(&self.store, &object.name)?;
            if owned { mine.push(object.name) } else { foreign.push(object.name) }
        }
        let needed = (0..self.plan.num_shards()).map(shard_name).find(|name| foreign.contains(name));
        if let Some(name) = needed {
            return Err(EncodeError::ForeignFile { url: self.store.url_of(&name), what: "a shard" });
        }
        // The manifest proves that the VAE and damaged shards belong to the dataset. Without it there is no dataset,
        // so it goes before the first shard.
        if self.earlier.owns_tokenizer(&self.store)? {
            self.store.delete(TOKENIZER_NAME)?;
        }
        if self.earlier.is_complete() || self.store.size(MANIFEST_NAME)?.is_some() {
            self.store.delete(MANIFEST_NAME)?;
        }
        for name in &mine {
            self.store.delete(name)?;
        }
        self.earlier = EarlierDataset::default();
        Ok(foreign.iter().map(|name| self.store.url_of(name)).collect())
    }
}
