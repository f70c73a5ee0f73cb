//! The files at `--out` that may be replaced or deleted: those of a dataset that this program has written.
//!
//! A shard belongs to a dataset if the manifest at `--out` lists it or if its header contains the identity of an encode
//! run, the VAE if its hash is in that manifest, and a manifest if it contains the identity of an encode run.
//! `--overwrite` replaces other datasets, but no foreign files.

use super::error::EncodeError;
use crate::error::DataError;
use crate::format::hash::xxh3_hex;
use crate::format::manifest::Manifest;
use crate::format::names::{MANIFEST_NAME, TOKENIZER_NAME, is_shard_name};
use crate::format::shard::is_shard_header;
use arinar_store::{Store, StoreError};

/// A key of every manifest, by which a damaged one is recognized too.
const MANIFEST_KEY: &[u8] = b"\"encode_id\"";
/// Maximum size of a shard's header, which has six tensors and one metadata key.
const LONGEST_HEADER: u64 = 1 << 16;

/// The dataset of an earlier encode run at `--out`, if any.
#[derive(Default)]
pub(crate) struct EarlierDataset {
    /// Its manifest, if there is a readable one.
    manifest: Option<Manifest>,
}

impl EarlierDataset {
    /// Reads the manifest at `store`.
    ///
    /// # Errors
    /// Returns an error if another dataset than that of `encode_id` exists and must not be overwritten, or if
    /// `manifest.json` is a foreign file.
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

    /// Whether the earlier dataset is complete, so that it may be in use.
    pub(super) fn is_complete(&self) -> bool {
        self.manifest.is_some()
    }

    /// Whether the object `name` at `store` is a shard that this program has written.
    pub(super) fn owns_shard(&self, store: &Store, name: &str) -> Result<bool, StoreError> {
        if !is_shard_name(name) {
            return Ok(false);
        }
        let listed = |manifest: &Manifest| manifest.shards.iter().any(|shard| shard.name == name);
        Ok(self.manifest.as_ref().is_some_and(listed) || has_shard_header(store, name)?)
    }

    /// Checks that `weights` can be stored as the VAE at `store`: there is no such file, or it has the same contents,
    /// or it belongs to the dataset that is replaced.
    pub(super) fn check_tokenizer(&self, store: &Store, weights: &[u8]) -> Result<(), EncodeError> {
        let Some(bytes) = store.size(TOKENIZER_NAME)? else { return Ok(()) };
        let same = |hash: &str| -> Result<bool, StoreError> { Ok(xxh3_hex(&store.get(TOKENIZER_NAME)?) == *hash) };
        if bytes == weights.len() as u64 && same(&xxh3_hex(weights))? || self.owns_tokenizer(store)? {
            return Ok(());
        }
        Err(EncodeError::ForeignFile { url: store.url_of(TOKENIZER_NAME), what: "the VAE of a dataset" })
    }

    /// Whether the VAE at `store` belongs to the dataset there.
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
