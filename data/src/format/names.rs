//! Names of datasets and of the files of a dataset.

use super::hash::xxh3_hex;

/// Name of the manifest in the dataset's folder.
pub const MANIFEST_NAME: &str = "manifest.json";
/// Name of the VAE's weights in the dataset's folder.
pub(crate) const TOKENIZER_NAME: &str = "vae.safetensors";
/// Hexadecimal digits of a dataset id.
pub(crate) const ID_DIGITS: usize = 16;

/// Derives the id of the dataset whose settings and shards `identity` names.
pub(crate) fn dataset_id(identity: &str) -> String {
    xxh3_hex(identity.as_bytes())[..ID_DIGITS].to_owned()
}

/// Whether `name` has the form of a dataset id. The folder of a dataset in a cache is named after its id.
pub(crate) fn is_dataset_id(name: &str) -> bool {
    name.len() == ID_DIGITS && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns the file name of a shard.
pub(crate) fn shard_name(shard: usize) -> String {
    format!("shard-{shard:05}.safetensors")
}

/// Whether `name` has the form of the names that [`shard_name`] returns.
pub(crate) fn is_shard_name(name: &str) -> bool {
    let digits = name.strip_prefix("shard-").and_then(|rest| rest.strip_suffix(".safetensors"));
    digits.is_some_and(|digits| digits.len() >= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}
