//! Where a whole copy of a damaged shard may be: the local cache, or a second copy of the dataset.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::format::manifest::{Manifest, ShardFacts};
use crate::format::shard::ShardError;
use crate::read::cache::default_cache;
use arinar_store::Store;

/// Copies of a dataset to repair it from.
#[derive(Debug)]
pub struct Copies {
    cache_folder: PathBuf,
    other: Option<Store>,
}

impl Copies {
    /// Copies in a cache folder (none: the user's own) and, where a URL is given, in a second dataset, which must have
    /// the id of the first.
    ///
    /// # Errors
    /// [`DataError::OtherDataset`] when the second is another dataset; when there is none.
    pub fn of(manifest: &Manifest, cache_folder: Option<&Path>, url: Option<&str>) -> Result<Self, DataError> {
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

    /// Replaces a shard in `store` by the first copy that is `sound`; says where it lay, or why no copy would do.
    ///
    /// # Errors
    /// When writing fails. What is written was verified before, and is read back and verified again.
    pub(crate) fn repair(
        &self,
        store: &Store,
        facts: &ShardFacts,
        sound: impl Fn(&[u8]) -> Result<(), ShardError>,
    ) -> Result<Result<String, String>, DataError> {
        let mut tried = Vec::new();
        for (place, copy) in self.places(facts) {
            let checked = copy.and_then(|file| sound(&file).map(|()| file).map_err(|error| error.to_string()));
            match checked {
                Ok(file) => {
                    store.put(&facts.name, file)?;
                    let written = store.get(&facts.name)?;
                    let url = store.url_of(&facts.name);
                    sound(&written).map_err(|source| DataError::Shard { url, source })?;
                    return Ok(Ok(place));
                }
                Err(reason) => tried.push(format!("{place}: {reason}")),
            }
        }
        Ok(Err(tried.join("; ")))
    }

    /// The copies, read one after the other as they are asked for.
    fn places<'a>(&'a self, facts: &'a ShardFacts) -> impl Iterator<Item = (String, Result<Vec<u8>, String>)> + 'a {
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
