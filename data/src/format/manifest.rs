//! The manifest: what a dataset is. It is written last and is the commit point: no manifest, no dataset.
//!
//! The file ends with a hash of what it says, so that a damaged one is told from a whole one. Manifests of the first
//! version of this program have none; they are taken as they are.

use std::collections::BTreeMap;

use arinar_model::text::printable;
use arinar_model::vae::{LoadedVae, VaeConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::DataError;
use crate::format::shard::{record_bytes, xxh3_hex};
use arinar_store::Store;

/// Name of the manifest in the dataset's folder.
pub const MANIFEST_NAME: &str = "manifest.json";
/// Version of the dataset format this program writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// A manifest that does not hold together is read so often: a bit of it may have flipped on its way.
const READS: u32 = 3;
/// Hexadecimal digits of a dataset's id.
const ID_DIGITS: usize = 16;
/// Largest picture and most latent channels that are not taken for damage.
const LARGEST_SIDE: i64 = 1 << 16;
const MOST_CHANNELS: i64 = 1 << 12;

/// A dataset's manifest.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub version: u32,
    /// Identity of the content: a hash over the settings of the encode run and all shards.
    pub dataset_id: String,
    /// Identity of the encode run's settings: pictures, crop, VAE, seed and shard size.
    pub encode_id: String,
    /// Seed of the permutation that spread the pictures over the shards.
    pub seed: u64,
    /// Samples in all shards.
    pub num_samples: u64,
    /// Pictures that were given; more than `num_samples` where some did not decode.
    pub num_sources: u64,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// Samples of each class.
    pub class_counts: Vec<u64>,
    /// About the pictures.
    pub image: ImageFacts,
    /// About the VAE that made the latents.
    pub vae: VaeFacts,
    /// Names of the pictures that did not decode and were left out.
    pub skipped: Vec<String>,
    /// The shards in order; sample i is the i-th record over all of them.
    pub shards: Vec<ShardFacts>,
}

/// A manifest as it is written.
#[derive(Serialize)]
struct Sealed<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    xxh3_128: String,
}

/// How the pictures were prepared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Side of the square pictures in pixels.
    pub size: u32,
}

/// Which VAE made the latents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaeFacts {
    /// Its sizes.
    pub config: VaeConfig,
    /// XXH3-128 of its weights file in hexadecimal; empty where the weights are not known.
    pub xxh3_128: String,
    /// Factor from latents to what the outer model sees.
    pub scale: f64,
    /// Latent channels C.
    pub channels: i64,
    /// Pixels per latent position along one side.
    pub stride: i64,
}

impl VaeFacts {
    /// What a manifest says about a VAE.
    pub fn of(vae: &LoadedVae) -> Self {
        Self {
            config: vae.config.clone(),
            xxh3_128: vae.xxh3.clone(),
            scale: vae.scale,
            channels: vae.config.embed_dim,
            stride: vae.config.stride(),
        }
    }
}

/// One shard file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFacts {
    /// File name in the dataset's folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Samples in it.
    pub count: u64,
    /// XXH3-128 of the file in hexadecimal.
    pub xxh3_128: String,
}

impl Manifest {
    /// Reads the manifest of the dataset at `store`.
    ///
    /// # Errors
    /// [`DataError::NoDataset`] when there is none, [`DataError::NewerVersion`] and [`DataError::Manifest`] when
    /// it cannot be understood.
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

    /// Writes it, which makes the dataset exist.
    pub fn write(&self, store: &Store) -> Result<(), DataError> {
        let json = self.sealed_json().map_err(|error| damaged(&store.url_of(MANIFEST_NAME), &error.to_string()))?;
        Ok(store.put(MANIFEST_NAME, json)?)
    }

    /// Positions of a latent along one side.
    pub fn grid(&self) -> usize {
        self.image.size as usize / self.vae.stride.max(1) as usize
    }

    /// Shape of one record's moments: [2C, H, W].
    pub fn moments_shape(&self) -> [usize; 3] {
        [2 * self.vae.channels as usize, self.grid(), self.grid()]
    }

    fn parse(bytes: &[u8], url: &str) -> Result<Self, DataError> {
        // The version is read on its own first: a newer manifest may have other fields.
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
        // Sealed is what a reader will understand: a number may be read back as its neighbour.
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
            Some(seal) => Err(format!("it does not say what its XXH3 {seal} was made of; it is damaged or was edited")),
            None => {
                let known = serde_json::to_value(self).map_err(text)?;
                let unknown = keys.keys().find(|key| known.get(key).is_none());
                unknown.map_or(Ok(()), |key| Err(format!("it has an unknown key {key:?} and no XXH3")))
            }
        }
    }

    /// What contradicts itself in the manifest.
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
                "image size {}, stride {}, {} channels and scale {} do not fit together",
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

/// What is wrong may quote the file.
fn damaged(url: &str, reason: &str) -> DataError {
    DataError::Manifest { url: url.to_owned(), reason: printable(reason) }
}

/// Whether this is the form of a dataset's id, which is also the name of its folder in a cache.
pub(crate) fn is_dataset_id(name: &str) -> bool {
    name.len() == ID_DIGITS && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether this is the name of a shard file: what [`shard_name`] gives.
pub(crate) fn is_shard_name(name: &str) -> bool {
    let digits = name.strip_prefix("shard-").and_then(|rest| rest.strip_suffix(".safetensors"));
    digits.is_some_and(|digits| digits.len() >= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// File name of a shard.
pub(crate) fn shard_name(shard: usize) -> String {
    format!("shard-{shard:05}.safetensors")
}

/// The id of a dataset whose settings and shards `identity` names.
pub(crate) fn dataset_id(identity: &str) -> String {
    xxh3_hex(identity.as_bytes())[..ID_DIGITS].to_owned()
}
