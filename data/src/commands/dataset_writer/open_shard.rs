//! A shard that is being filled.

use std::collections::BTreeMap;

use safetensors::SafeTensorError;
use serde::{Deserialize, Serialize};

use super::picture_list::PictureList;
use crate::format::shard::ShardWriter;

/// A picture that cannot be used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BadPicture {
    pub(super) source_id: u32,
    pub(super) name: String,
    pub(super) reason: String,
}

/// A shard that is being filled.
pub(crate) struct OpenShard<'a> {
    pictures: &'a dyn PictureList,
    skip_bad: bool,
    writer: ShardWriter,
    pub(super) class_counts: BTreeMap<u32, u64>,
    pub(super) count: u64,
    pub(super) bad: Vec<BadPicture>,
}

impl<'a> OpenShard<'a> {
    /// Creates an empty shard for records of `pictures` with moments of `shape`.
    pub(super) fn new(pictures: &'a dyn PictureList, shape: [usize; 3], skip_bad: bool) -> Self {
        let writer = ShardWriter::new(shape);
        Self { pictures, skip_bad, writer, class_counts: BTreeMap::new(), count: 0, bad: Vec::new() }
    }

    /// Whether the shard will be stored. Without --skip-bad, a shard with an unusable picture is not stored, and its
    /// remaining pictures are only decoded.
    pub(crate) fn is_wanted(&self) -> bool {
        self.bad.is_empty() || self.skip_bad
    }

    /// Appends the record of picture `index`, whose file has the XXH3-128 `content`; both views are f16 moments
    /// [2C, H, W] as little-endian bytes.
    pub(crate) fn push(&mut self, index: u32, content: u128, original: &[u8], mirrored: &[u8]) {
        let label = self.pictures.label(index as usize);
        self.writer.push_with_content(i64::from(label), i64::from(index), content, original, mirrored);
        *self.class_counts.entry(label).or_default() += 1;
        self.count += 1;
    }

    /// Skips a picture that cannot be used.
    pub(crate) fn skip(&mut self, index: u32, reason: String) {
        let name = self.pictures.name(index as usize).into_owned();
        self.bad.push(BadPicture { source_id: index, name, reason });
    }

    /// Returns the bytes of the shard file.
    pub(super) fn finish(self, encode_id: &str) -> Result<Vec<u8>, SafeTensorError> {
        self.writer.finish(encode_id)
    }
}
