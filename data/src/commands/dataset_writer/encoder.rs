//! The source of a dataset's records.

use super::error::EncodeError;
use super::open_shard::OpenShard;
use super::picture_list::PictureList;

/// Encodes pictures as records.
pub(crate) trait RecordEncoder {
    /// Pictures to encode.
    fn pictures(&self) -> &dyn PictureList;

    /// Returns the VAE's safetensors file, which is stored beside the shards, or `None` if the weights are not known.
    fn tokenizer(&self) -> Result<Option<Vec<u8>>, EncodeError>;

    /// Returns the XXH3-128 of the file of a picture, as it is now.
    ///
    /// # Errors
    /// Returns the reason if the file cannot be read.
    fn content_hash(&self, picture: u32) -> Result<u128, String>;

    /// Whether a picture can be used now.
    ///
    /// # Errors
    /// Returns the reason if not.
    fn check(&self, picture: u32) -> Result<(), String>;

    /// Appends the records of `pictures` to a shard in this order, and calls `on_progress` with the number of pictures
    /// processed since its last call.
    fn fill(
        &self,
        pictures: &[u32],
        shard: &mut OpenShard<'_>,
        on_progress: &mut dyn FnMut(u64),
    ) -> Result<(), EncodeError>;
}
