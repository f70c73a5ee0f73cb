//! Which files at `--out` a dataset may replace or delete: those of a dataset that this program has made there.
//!
//! A shard is one if the manifest at `--out` lists it or if its header says which encode run made it; the VAE, if its
//! hash is the one in that manifest; a manifest, if it has the identity of an encode run. `--overwrite` replaces other
//! datasets, but no other files.

use super::EncodeError;
use crate::error::DataError;
use crate::format::manifest::{MANIFEST_NAME, Manifest, is_shard_name};
use crate::format::shard::{is_shard_header, xxh3_hex};
use crate::read::tokenizer::TOKENIZER_NAME;
use arinar_store::{Store, StoreError};

/// A key of every manifest, near its beginning: also a damaged one is known by it.
const MANIFEST_KEY: &[u8] = b"\"encode_id\"";
/// A shard's header has six tensors and one key of metadata; no longer one is read.
const LONGEST_HEADER: u64 = 1 << 16;

/// The dataset that an earlier encode run has left at `--out`, if any.
pub(super) struct Earlier {
    /// Its manifest, where there is one that can be read.
    manifest: Option<Manifest>,
}

impl Earlier {
    /// Looks at the manifest at `store`.
    ///
    /// # Errors
    /// A dataset that is not the one of `encode_id` and must not be overwritten, or a `manifest.json` of something
    /// else.
    pub(super) fn find(store: &Store, encode_id: &str, overwrite: bool) -> Result<Self, EncodeError> {
        match Manifest::read(store) {
            Ok(manifest) if overwrite || manifest.encode_id == encode_id => Ok(Self { manifest: Some(manifest) }),
            Ok(_) => Err(EncodeError::OtherDataset { url: store.url().to_owned() }),
            Err(DataError::NoDataset { .. }) => Ok(Self { manifest: None }),
            Err(DataError::Manifest { .. } | DataError::NewerVersion { .. }) if !is_manifest(store)? => {
                Err(EncodeError::ForeignFile { url: store.url_of(MANIFEST_NAME), what: "the manifest of a dataset" })
            }
            Err(DataError::Manifest { .. } | DataError::NewerVersion { .. }) if overwrite => {
                Ok(Self { manifest: None })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the object `name` at `store` is a shard that this program has made.
    pub(super) fn owns_shard(&self, store: &Store, name: &str) -> Result<bool, StoreError> {
        if !is_shard_name(name) {
            return Ok(false);
        }
        let listed = |manifest: &Manifest| manifest.shards.iter().any(|shard| shard.name == name);
        Ok(self.manifest.as_ref().is_some_and(listed) || has_shard_header(store, name)?)
    }

    /// Makes sure that the VAE's weights can be kept at `store` as `weights`: nothing is there, or the same, or the VAE
    /// of the dataset that is replaced.
    pub(super) fn check_tokenizer(&self, store: &Store, weights: &[u8]) -> Result<(), EncodeError> {
        let Some(bytes) = store.size(TOKENIZER_NAME)? else { return Ok(()) };
        let same = |hash: &str| -> Result<bool, StoreError> { Ok(xxh3_hex(&store.get(TOKENIZER_NAME)?) == *hash) };
        if bytes == weights.len() as u64 && same(&xxh3_hex(weights))? || self.owns_tokenizer(store)? {
            return Ok(());
        }
        Err(EncodeError::ForeignFile { url: store.url_of(TOKENIZER_NAME), what: "the VAE of a dataset" })
    }

    /// Whether the VAE at `store` is the one of the dataset there.
    pub(super) fn owns_tokenizer(&self, store: &Store) -> Result<bool, StoreError> {
        let Some(manifest) = &self.manifest else { return Ok(false) };
        match store.get(TOKENIZER_NAME) {
            Ok(file) => Ok(xxh3_hex(&file) == manifest.vae.xxh3_128),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_manifest(store: &Store) -> Result<bool, StoreError> {
    let file = store.get(MANIFEST_NAME)?;
    Ok(file.windows(MANIFEST_KEY.len()).any(|window| window == MANIFEST_KEY))
}

fn has_shard_header(store: &Store, name: &str) -> Result<bool, StoreError> {
    let size = match store.size(name)? {
        Some(size) if size > 8 => size,
        _ => return Ok(false),
    };
    Ok(is_shard_header(&store.get_range(name, 0, size.min(LONGEST_HEADER))?))
}
