//! A shard: a safetensors file of records, which Python can open too.
//!
//! Tensors: `moments` and `moments_flipped` [N, 2C, H, W] f16, `label` and `source_id` `[N]` i64, `crc32c` and
//! `crc32c_flipped` `[N]` u32. A checksum covers the moments of its view, then label and source_id (little endian), so
//! that it reveals damage to the picture and to its class. The metadata key `encode_id` identifies the encode run.
//!
//! A shard that was made from files also has `source_xxh3` [N, 16] u8, the XXH3-128 of each file (big endian), by which
//! a later encode run notices that a picture has changed. Shards of earlier versions lack it.

use std::collections::HashMap;

use arinar_model::weights::header_of;
use safetensors::tensor::{Dtype, TensorInfo, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use thiserror::Error;

use super::facts::ShardFacts;
use super::hash::{record_checksum, xxh3_hex};

const MOMENTS: [&str; 2] = ["moments", "moments_flipped"];
const CHECKSUMS: [&str; 2] = ["crc32c", "crc32c_flipped"];
const LABEL: &str = "label";
const SOURCE_ID: &str = "source_id";
const SOURCE_XXH3: &str = "source_xxh3";
const ENCODE_ID: &str = "encode_id";
/// Bytes per record of the hash of its file.
pub(crate) const HASH_BYTES: usize = 16;
/// Bytes per record in addition to the moments and the hash of the file: label, source_id and two checksums.
const EXTRA_BYTES: usize = 8 + 8 + 4 + 4;

/// Damage to a shard file.
#[derive(Debug, Error)]
pub enum ShardError {
    /// The file is missing.
    #[error("the file is missing")]
    Missing,
    /// The size differs from the manifest.
    #[error("it has {found} bytes instead of {expected}")]
    Size {
        /// Size of the file in bytes.
        found: u64,
        /// Size in the manifest.
        expected: u64,
    },
    /// The header is not a safetensors header.
    #[error("its header cannot be parsed ({0})")]
    Header(#[from] SafeTensorError),
    /// A tensor is missing or has the wrong type or shape.
    #[error("tensor {name} is {found}, expected {expected}")]
    Tensor {
        /// Name of the tensor.
        name: &'static str,
        /// Type and shape in the file.
        found: String,
        /// Type and shape of a valid shard.
        expected: String,
    },
    /// The checksum of a record is wrong.
    #[error("record {record} ({view} view, picture {source_id}) has a wrong CRC32C")]
    Record {
        /// Index of the record in the shard.
        record: usize,
        /// "original" or "mirrored".
        view: &'static str,
        /// Index of its picture in the sorted list, unless this field is damaged too.
        source_id: i64,
    },
    /// A label is not the index of a class.
    #[error("record {record} (picture {source_id}) has label {label}, but there are {classes} classes")]
    Label {
        /// Index of the record in the shard.
        record: usize,
        /// Index of its picture in the sorted list.
        source_id: i64,
        /// The label.
        label: i64,
        /// Number of classes.
        classes: usize,
    },
    /// All records are intact, but the hash of the file differs.
    #[error("its XXH3 is {found} instead of {expected}, although every record is intact")]
    Hash {
        /// Hash of the file.
        found: String,
        /// Hash in the manifest.
        expected: String,
    },
}

/// One of the two encoded views of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The picture itself.
    Original,
    /// The picture mirrored left to right.
    Mirrored,
}

impl View {
    fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Mirrored => "mirrored",
        }
    }
}

/// Returns the size of a record in a shard in bytes; `shape` is [2C, H, W].
pub(crate) fn record_bytes(shape: [usize; 3]) -> usize {
    2 * view_bytes(shape) + EXTRA_BYTES
}

fn view_bytes(shape: [usize; 3]) -> usize {
    2 * shape.iter().product::<usize>()
}

/// Collects records and serializes them as a shard file.
#[derive(Debug)]
pub struct ShardWriter {
    shape: [usize; 3],
    moments: [Vec<u8>; 2],
    checksums: [Vec<u8>; 2],
    labels: Vec<u8>,
    source_ids: Vec<u8>,
    contents: Vec<u8>,
    count: usize,
}

impl ShardWriter {
    /// Creates an empty shard for records with moments of `shape` [2C, H, W].
    pub fn new(shape: [usize; 3]) -> Self {
        Self {
            shape,
            moments: Default::default(),
            checksums: Default::default(),
            labels: Vec::new(),
            source_ids: Vec::new(),
            contents: Vec::new(),
            count: 0,
        }
    }

    /// Appends a record; `original` and `mirrored` are f16 moments [2C, H, W] as little-endian bytes.
    pub fn push(&mut self, label: i64, source_id: i64, original: &[u8], mirrored: &[u8]) {
        for (view, moments) in [original, mirrored].into_iter().enumerate() {
            debug_assert_eq!(moments.len(), view_bytes(self.shape));
            self.moments[view].extend_from_slice(moments);
            let crc = record_checksum(moments, label, source_id);
            self.checksums[view].extend_from_slice(&crc.to_le_bytes());
        }
        self.labels.extend_from_slice(&label.to_le_bytes());
        self.source_ids.extend_from_slice(&source_id.to_le_bytes());
        self.count += 1;
    }

    /// Appends a record with the XXH3-128 of the file that it was made from. Either all records have one or none.
    pub fn push_with_content(&mut self, label: i64, source_id: i64, content: u128, original: &[u8], mirrored: &[u8]) {
        self.push(label, source_id, original, mirrored);
        self.contents.extend_from_slice(&content.to_be_bytes());
    }

    /// Returns the bytes of the file. The same records always give the same bytes.
    pub fn finish(self, encode_id: &str) -> Result<Vec<u8>, SafeTensorError> {
        let [channels, height, width] = self.shape;
        let mut tensors = Vec::with_capacity(7);
        for view in 0..2 {
            let shape = vec![self.count, channels, height, width];
            tensors.push((MOMENTS[view], TensorView::new(Dtype::F16, shape, &self.moments[view])?));
            tensors.push((CHECKSUMS[view], TensorView::new(Dtype::U32, vec![self.count], &self.checksums[view])?));
        }
        tensors.push((LABEL, TensorView::new(Dtype::I64, vec![self.count], &self.labels)?));
        tensors.push((SOURCE_ID, TensorView::new(Dtype::I64, vec![self.count], &self.source_ids)?));
        if !self.contents.is_empty() {
            tensors.push((SOURCE_XXH3, TensorView::new(Dtype::U8, vec![self.count, HASH_BYTES], &self.contents)?));
        }
        // A single key: several would be written in random order.
        let metadata = HashMap::from([(ENCODE_ID.to_owned(), encode_id.to_owned())]);
        safetensors::serialize(tensors, Some(metadata))
    }
}

/// Offsets of the tensors in a shard file.
#[derive(Clone, Debug)]
pub struct ShardLayout {
    count: usize,
    view_bytes: usize,
    moments: [usize; 2],
    checksums: [usize; 2],
    label: usize,
    source_id: usize,
    contents: Option<usize>,
    encode_id: String,
}

/// A record whose checksum is correct.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// f16 moments [2C, H, W], little endian.
    pub moments: &'a [u8],
    /// Class label.
    pub label: i64,
    /// Index of the picture in the sorted list of all pictures.
    pub source_id: i64,
}

impl ShardLayout {
    /// Parses the header of a complete shard file and checks type and shape of every tensor.
    pub fn parse(file: &[u8], shape: [usize; 3]) -> Result<Self, ShardError> {
        // Checks that the header and the data fill the file exactly.
        SafeTensors::deserialize(file)?;
        let (header_bytes, header) = SafeTensors::read_metadata(file)?;
        let start = header_bytes + 8;
        let count = header.info(LABEL).and_then(|info| info.shape.first().copied()).unwrap_or(0);
        let [channels, height, width] = shape;
        let offset = |name: &'static str, dtype: Dtype, shape: &[usize]| match header.info(name) {
            Some(info) if info.dtype == dtype && info.shape == shape => Ok(start + info.data_offsets.0),
            found => Err(ShardError::Tensor {
                name,
                found: found.map_or_else(|| "missing".to_owned(), describe),
                expected: format!("{dtype:?} {shape:?}"),
            }),
        };
        let moments = |name| offset(name, Dtype::F16, &[count, channels, height, width]);
        let checksums = |name| offset(name, Dtype::U32, &[count]);
        let contents = header.info(SOURCE_XXH3).map(|_| offset(SOURCE_XXH3, Dtype::U8, &[count, HASH_BYTES]));
        Ok(Self {
            count,
            view_bytes: view_bytes(shape),
            moments: [moments(MOMENTS[0])?, moments(MOMENTS[1])?],
            checksums: [checksums(CHECKSUMS[0])?, checksums(CHECKSUMS[1])?],
            label: offset(LABEL, Dtype::I64, &[count])?,
            source_id: offset(SOURCE_ID, Dtype::I64, &[count])?,
            contents: contents.transpose()?,
            encode_id: header.metadata().as_ref().and_then(|m| m.get(ENCODE_ID)).cloned().unwrap_or_default(),
        })
    }

    /// Number of records.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Identity of the encode run that wrote the shard; empty if the shard does not contain it.
    pub fn encode_id(&self) -> &str {
        &self.encode_id
    }

    /// Returns the XXH3-128 of the file that a record was made from, or `None` if the shard does not contain it.
    pub fn content(&self, file: &[u8], record: usize) -> Option<u128> {
        let at = self.contents? + HASH_BYTES * record;
        Some(u128::from_be_bytes(file.get(at..at + HASH_BYTES)?.try_into().ok()?))
    }

    /// Returns label and source id of a record without verifying them.
    pub fn facts(&self, file: &[u8], record: usize) -> (i64, i64) {
        (read_i64(file, self.label + 8 * record), read_i64(file, self.source_id + 8 * record))
    }

    /// Reads a record of `file`, from which this layout was parsed, and verifies its CRC32C.
    pub fn record<'a>(&self, file: &'a [u8], record: usize, view: View) -> Result<Record<'a>, ShardError> {
        let index = view as usize;
        let start = self.moments[index] + record * self.view_bytes;
        let moments = &file[start..start + self.view_bytes];
        let (label, source_id) = self.facts(file, record);
        let at = self.checksums[index] + 4 * record;
        let expected = u32::from_le_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]]);
        if record_checksum(moments, label, source_id) != expected {
            return Err(ShardError::Record { record, view: view.name(), source_id });
        }
        Ok(Record { moments, label, source_id })
    }

    /// Verifies the checksums of all records.
    ///
    /// # Errors
    /// Returns [`ShardError::Record`] for the first record with a wrong checksum.
    pub fn check_records(&self, file: &[u8]) -> Result<(), ShardError> {
        for record in 0..self.count {
            self.record(file, record, View::Original)?;
            self.record(file, record, View::Mirrored)?;
        }
        Ok(())
    }
}

/// Whether a file that begins with `start` is a shard, intact or damaged: its header lists the tensors of a shard and
/// the identity of an encode run.
pub(crate) fn is_shard_header(start: &[u8]) -> bool {
    let Some(header) = header_of(start) else { return false };
    let made_by = header.get("__metadata__").and_then(|metadata| metadata.get(ENCODE_ID)).and_then(|id| id.as_str());
    let mut names = MOMENTS.iter().chain(&CHECKSUMS).chain([&LABEL, &SOURCE_ID]);
    made_by.is_some_and(|id| !id.is_empty()) && names.all(|name| header.contains_key(*name))
}

/// Compares a shard file with the size and hash in the manifest and returns its layout. If the hash is wrong, the error
/// names the damaged record.
pub fn check_shard(file: &[u8], facts: &ShardFacts, shape: [usize; 3]) -> Result<ShardLayout, ShardError> {
    if file.len() as u64 != facts.bytes {
        return Err(ShardError::Size { found: file.len() as u64, expected: facts.bytes });
    }
    let found = xxh3_hex(file);
    let layout = ShardLayout::parse(file, shape)?;
    if found != facts.xxh3_128 || layout.count as u64 != facts.count {
        layout.check_records(file)?;
        return Err(ShardError::Hash { found, expected: facts.xxh3_128.clone() });
    }
    Ok(layout)
}

fn describe(info: &TensorInfo) -> String {
    format!("{:?} {:?}", info.dtype, info.shape)
}

fn read_i64(file: &[u8], at: usize) -> i64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&file[at..at + 8]);
    i64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 3] = [4, 2, 2];

    fn shard() -> Vec<u8> {
        let mut writer = ShardWriter::new(SHAPE);
        for record in 0..5u8 {
            writer.push(record.into(), 10 + i64::from(record), &[record; 32], &[100 + record; 32]);
        }
        writer.finish("run").expect("finish")
    }

    #[test]
    fn records_come_back() {
        let file = shard();
        let layout = ShardLayout::parse(&file, SHAPE).expect("parse");
        assert_eq!((layout.count(), layout.encode_id()), (5, "run"));
        let record = layout.record(&file, 3, View::Mirrored).expect("record");
        assert_eq!((record.moments, record.label, record.source_id), (&[103u8; 32][..], 3, 13));
    }

    #[test]
    fn a_shard_is_known_by_its_header() {
        let file = shard();
        let (header, _) = SafeTensors::read_metadata(&file).expect("header");
        assert!(is_shard_header(&file) && is_shard_header(&file[..header + 8]));
        assert!(!is_shard_header(&file[..header + 7]) && !is_shard_header(&[0; 100]) && !is_shard_header(b""));
        let view = || TensorView::new(Dtype::F32, vec![1], &[0; 4]).expect("view");
        let about = |key: &str| Some(HashMap::from([(key.to_owned(), "run".to_owned())]));
        for (names, key) in
            [(vec!["weight"], ENCODE_ID), (vec![MOMENTS[0], LABEL], ENCODE_ID), (vec!["weight"], "format")]
        {
            let other = safetensors::serialize(names.into_iter().map(|name| (name, view())), about(key)).expect("file");
            assert!(!is_shard_header(&other));
        }
    }

    #[test]
    fn every_flipped_bit_of_the_data_is_noticed() {
        let good = shard();
        let (header, _) = SafeTensors::read_metadata(&good).expect("header");
        for at in header + 8..good.len() {
            let mut file = good.clone();
            file[at] ^= 1 << (at % 8);
            let layout = ShardLayout::parse(&file, SHAPE).expect("parse");
            assert!(layout.check_records(&file).is_err(), "byte {at}");
        }
    }

    #[test]
    fn other_shapes_and_cut_files_are_errors() {
        let file = shard();
        let error = ShardLayout::parse(&file, [4, 3, 2]).expect_err("shape");
        assert!(error.to_string().contains("moments is F16 [5, 4, 2, 2]"), "{error}");
        assert!(ShardLayout::parse(&file[..file.len() - 1], SHAPE).is_err());
        assert!(ShardLayout::parse(&file[..20], SHAPE).is_err());
    }
}
