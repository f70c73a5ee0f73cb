//! The manifest describes a dataset. It is written last and is the commit point: without a manifest there is no
//! dataset.
//!
//! The file ends with a hash of its contents, which reveals damage. Manifests written by the first version of this
//! program have no hash and are accepted without one.

use std::collections::BTreeMap;

use arinar_model::text::printable;
use arinar_store::Store;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::facts::{ImageFacts, ShardFacts, VaeFacts};
use super::hash::xxh3_hex;
use super::names::{ID_DIGITS, MANIFEST_NAME, is_dataset_id, is_shard_name};
use super::shard::record_bytes;
use crate::error::DataError;

/// Version of the dataset format that this program writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Attempts to read a manifest that is inconsistent: a bit may have flipped in transit.
const READS: u32 = 3;
/// Largest picture and number of latent channels that are not considered damage.
const LARGEST_SIDE: i64 = 1 << 16;
const MOST_CHANNELS: i64 = 1 << 12;

/// Description of a dataset: the contents of its manifest.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub version: u32,
    /// Identity of the contents: a hash of the encode run's settings and of all shards.
    pub dataset_id: String,
    /// Identity of the encode run's settings: a hash of pictures, crop, VAE, seed and shard size.
    pub encode_id: String,
    /// Seed of the permutation that distributes the pictures over the shards.
    pub seed: u64,
    /// Number of samples in all shards.
    pub num_samples: u64,
    /// Number of input pictures; larger than `num_samples` if some did not decode.
    pub num_sources: u64,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// Number of samples of each class.
    pub class_counts: Vec<u64>,
    /// Facts about the pictures.
    pub image: ImageFacts,
    /// Facts about the VAE that encoded the latents.
    pub vae: VaeFacts,
    /// Names of the pictures that did not decode and were skipped.
    pub skipped: Vec<String>,
    /// Shards in order; sample i is the i-th record over all of them.
    pub shards: Vec<ShardFacts>,
}

/// Contents of the file: the manifest and its hash.
#[derive(Serialize)]
struct Sealed<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    xxh3_128: String,
}

impl Manifest {
    /// Reads the manifest of the dataset at `store`.
    ///
    /// # Errors
    /// Returns [`DataError::NoDataset`] if there is none, [`DataError::NewerVersion`] if a newer program wrote it, and
    /// [`DataError::Manifest`] if it is damaged.
    pub fn read(store: &Store) -> Result<Self, DataError> {
        let mut read = Self::read_once(store);
        for _ in 1..READS {
            if !matches!(read, Err(DataError::Manifest { .. } | DataError::NewerVersion { .. })) {
                break;
            }
            read = Self::read_once(store);
        }
        read
    }

    fn read_once(store: &Store) -> Result<Self, DataError> {
        let bytes = match store.get(MANIFEST_NAME) {
            Err(error) if error.is_missing() => return Err(DataError::NoDataset { url: store.url().to_owned() }),
            other => other?,
        };
        let manifest = Self::parse(&bytes, &store.url_of(MANIFEST_NAME))?;
        let whole = manifest.check().and_then(|()| manifest.check_seal(&bytes));
        whole.map_err(|reason| damaged(&store.url_of(MANIFEST_NAME), &reason))?;
        Ok(manifest)
    }

    /// Writes the manifest, which makes the dataset exist.
    pub fn write(&self, store: &Store) -> Result<(), DataError> {
        let json = self.sealed_json().map_err(|error| damaged(&store.url_of(MANIFEST_NAME), &error.to_string()))?;
        Ok(store.put(MANIFEST_NAME, json)?)
    }

    /// Number of latent positions along one side.
    pub fn grid(&self) -> usize {
        self.image.size as usize / self.vae.stride.max(1) as usize
    }

    /// Shape of the moments of one record: [2C, H, W].
    pub fn moments_shape(&self) -> [usize; 3] {
        [2 * self.vae.channels as usize, self.grid(), self.grid()]
    }

    fn parse(bytes: &[u8], url: &str) -> Result<Self, DataError> {
        // Parse the version first: a newer manifest may have other fields.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let broken = |error: serde_json::Error| damaged(url, &error.to_string());
        let Versioned { version } = serde_json::from_slice(bytes).map_err(broken)?;
        if version > FORMAT_VERSION {
            return Err(DataError::NewerVersion { url: url.to_owned(), found: version, known: FORMAT_VERSION });
        }
        serde_json::from_slice(bytes).map_err(broken)
    }

    fn sealed_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        // Hash what a reader will parse: a floating-point number may be read back as its neighbour.
        let read_back: Self = serde_json::from_slice(&serde_json::to_vec(self)?)?;
        serde_json::to_vec_pretty(&Sealed { manifest: self, xxh3_128: read_back.seal()? })
    }

    fn seal(&self) -> Result<String, serde_json::Error> {
        Ok(xxh3_hex(&serde_json::to_vec(self)?))
    }

    /// Compares the manifest with the hash in the file, if it has one.
    fn check_seal(&self, bytes: &[u8]) -> Result<(), String> {
        let text = |error: serde_json::Error| error.to_string();
        let keys: BTreeMap<String, Value> = serde_json::from_slice(bytes).map_err(text)?;
        match keys.get("xxh3_128") {
            Some(seal) if *seal == self.seal().map_err(text)? => Ok(()),
            Some(seal) => Err(format!("its contents do not match its XXH3 {seal}; it is damaged or was edited")),
            None => {
                let known = serde_json::to_value(self).map_err(text)?;
                let unknown = keys.keys().find(|key| known.get(key).is_none());
                unknown.map_or(Ok(()), |key| Err(format!("it has an unknown key {key:?} and no XXH3")))
            }
        }
    }

    /// Checks that the fields are consistent; the error describes the first contradiction.
    fn check(&self) -> Result<(), String> {
        let total = self.shards.iter().try_fold(0u64, |total, shard| total.checked_add(shard.count));
        if total != Some(self.num_samples) {
            return Err(format!(
                "num_samples is {}, but its shards hold {}",
                self.num_samples,
                total.unwrap_or(u64::MAX)
            ));
        }
        if self.num_samples == 0 || self.num_samples > u64::from(u32::MAX) {
            return Err(format!("num_samples is {}; 1 to {} are possible", self.num_samples, u32::MAX));
        }
        if !is_dataset_id(&self.dataset_id) {
            return Err(format!("{:?} is not a dataset id, which has {ID_DIGITS} hexadecimal digits", self.dataset_id));
        }
        if let Some(shard) = self.shards.iter().find(|shard| !is_shard_name(&shard.name)) {
            return Err(format!("{:?} is not the name of a shard", shard.name));
        }
        let vae = &self.vae;
        vae.config.validate()?;
        let divides = vae.stride > 0 && i64::from(self.image.size) % vae.stride == 0;
        let sane =
            (1..=LARGEST_SIDE).contains(&i64::from(self.image.size)) && (1..=MOST_CHANNELS).contains(&vae.channels);
        let scaled = vae.scale.is_finite() && vae.scale > 0.0;
        if !(divides && sane && scaled) {
            return Err(format!(
                "image size {}, stride {}, {} channels and scale {} are inconsistent",
                self.image.size, vae.stride, vae.channels, vae.scale
            ));
        }
        let record = record_bytes(self.moments_shape()) as u64;
        let full = |shard: &&ShardFacts| shard.count.checked_mul(record).is_none_or(|bytes| bytes > shard.bytes);
        match self.shards.iter().find(full) {
            Some(shard) => Err(format!("{} of {} bytes cannot hold {} records", shard.name, shard.bytes, shard.count)),
            None => Ok(()),
        }
    }
}

/// The reason may quote the file, so unprintable characters are escaped.
fn damaged(url: &str, reason: &str) -> DataError {
    DataError::Manifest { url: url.to_owned(), reason: printable(reason) }
}
