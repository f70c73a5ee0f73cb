//! Repair of damaged shards from copies in the local cache or in a second copy of the dataset.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::format::facts::ShardFacts;
use crate::format::manifest::Manifest;
use crate::format::shard::ShardError;
use crate::read::cache::config::default_cache;
use arinar_store::Store;

/// Copies of a dataset from which it can be repaired.
#[derive(Debug)]
pub(crate) struct Copies {
    cache_folder: PathBuf,
    other: Option<Store>,
}

impl Copies {
    /// Uses the copies in a cache folder, by default that of the user, and in the dataset at `url`, if given.
    ///
    /// # Errors
    /// Returns [`DataError::OtherDataset`] if `url` is a different dataset, and an error if there is no dataset.
    pub(crate) fn of(manifest: &Manifest, cache_folder: Option<&Path>, url: Option<&str>) -> Result<Self, DataError> {
        let cache_folder = cache_folder.map_or_else(default_cache, Path::to_path_buf).join(&manifest.dataset_id);
        let other = url.map(Store::open).transpose()?;
        if let Some(store) = &other {
            let found = Manifest::read(store)?.dataset_id;
            if found != manifest.dataset_id {
                let expected = manifest.dataset_id.clone();
                return Err(DataError::OtherDataset { url: store.url().to_owned(), found, expected });
            }
        }
        Ok(Self { cache_folder, other })
    }

    /// Replaces a shard in `store` by the first copy that passes `verify`. Returns the location of this copy, or the
    /// reason why no copy can be used.
    ///
    /// # Errors
    /// Returns an error if writing fails. The copy is verified before it is written and after reading it back.
    pub(crate) fn repair(
        &self,
        store: &Store,
        facts: &ShardFacts,
        verify: impl Fn(&[u8]) -> Result<(), ShardError>,
    ) -> Result<Result<String, String>, DataError> {
        let mut tried = Vec::new();
        for (location, copy) in self.candidates(facts) {
            let checked = copy.and_then(|file| verify(&file).map(|()| file).map_err(|error| error.to_string()));
            match checked {
                Ok(file) => {
                    store.put(&facts.name, file)?;
                    let written = store.get(&facts.name)?;
                    let url = store.url_of(&facts.name);
                    verify(&written).map_err(|source| DataError::Shard { url, source })?;
                    return Ok(Ok(location));
                }
                Err(reason) => tried.push(format!("{location}: {reason}")),
            }
        }
        Ok(Err(tried.join("; ")))
    }

    /// Returns the location and the contents of each copy. The copies are read lazily.
    fn candidates<'a>(&'a self, facts: &'a ShardFacts) -> impl Iterator<Item = (String, Result<Vec<u8>, String>)> + 'a {
        let cached = std::iter::once_with(move || {
            let path = self.cache_folder.join(&facts.name);
            let file = std::fs::read(&path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => "not there".to_owned(),
                _ => error.to_string(),
            });
            (path.display().to_string(), file)
        });
        let other = self.other.iter().map(move |store| {
            let file = store.get(&facts.name).map(Vec::from).map_err(|error| error.to_string());
            (store.url_of(&facts.name), file)
        });
        cached.chain(other)
    }
}
