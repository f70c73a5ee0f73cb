//! The safetensors files of one rank: official parameter names, data taken directly from flat memory.

use std::{collections::HashMap, ops::Range};

use safetensors::{
    Dtype, SafeTensorError,
    tensor::{Metadata, TensorInfo},
};
use tch::{Kind, Tensor};

use crate::{error::CheckpointError, layout::TensorSet};

/// The three kinds of files.
pub(crate) const KINDS: [&str; 3] = ["model", "ema", "optimizer"];

/// Prefixes of AdamW's moments in the optimizer files: PyTorch's names of them.
pub(crate) const MOMENTS: [&str; 2] = ["exp_avg.", "exp_avg_sq."];

/// Size of an element in bytes.
const ELEMENT: usize = size_of::<f32>();

/// Returns the name of the file of one rank, for example `model-00001-of-00004.safetensors`. Numbers begin at 1, as in
/// files of Hugging Face.
pub(crate) fn file_name(kind: &str, rank: usize, world_size: usize) -> String {
    format!("{kind}-{:05}-of-{world_size:05}.safetensors", rank + 1)
}

/// Returns the rank and world size in the name of a file; `None` if it is not the file of a rank.
pub(crate) fn rank_of(name: &str) -> Option<(usize, usize)> {
    let (_, numbers) = name.strip_suffix(".safetensors")?.split_once('-')?;
    let (number, world_size) = numbers.split_once("-of-")?;
    let (number, world_size): (usize, usize) = (number.parse().ok()?, world_size.parse().ok()?);
    (1..=world_size).contains(&number).then(|| (number - 1, world_size))
}

/// A file to be written: its header, and handles of the tensors that contain its data.
pub(crate) struct FileLayout {
    /// Name within the folder of the checkpoint.
    pub name: String,
    /// True for the file of weights, which must be finite.
    pub is_weights: bool,
    /// The header as it is written to the file, including its length.
    pub header: Vec<u8>,
    /// Contiguous float32 tensors.
    pub sources: Vec<Tensor>,
    /// The data, in file order.
    pub extents: Vec<Extent>,
}

/// A range of bytes of one of the sources of a file.
pub(crate) struct Extent {
    /// Index of the source.
    pub source: usize,
    /// The range.
    pub bytes: Range<usize>,
}

/// A tensor of a file.
struct Entry {
    name: String,
    shape: Vec<usize>,
    extent: Extent,
}

impl TensorSet<'_> {
    /// Returns the size of the files of all ranks together in bytes, without headers.
    pub(crate) fn bytes(&self) -> u64 {
        4 * (ELEMENT * self.parameters.numel()) as u64
    }

    /// Lays out the files of one rank. Nothing is copied: the sources share memory with the tensors in training, except for
    /// the small tensors that are not trained.
    ///
    /// # Errors
    /// Returns an error if safetensors cannot represent the tensors.
    pub(crate) fn lay_out(&self, rank: usize, world_size: usize) -> Result<Vec<FileLayout>, CheckpointError> {
        let lay_out = |kind: &&str| {
            let name = file_name(kind, rank, world_size);
            self.lay_out_kind(kind, &name, rank).map_err(|source| CheckpointError::Layout { file: name, source })
        };
        KINDS.iter().map(lay_out).collect()
    }

    fn lay_out_kind(&self, kind: &str, name: &str, rank: usize) -> Result<FileLayout, SafeTensorError> {
        let part = self.part;
        let flat = match kind {
            "model" => vec![("", part.of(self.parameters))],
            "ema" => vec![("", self.ema.shallow_clone())],
            _ => MOMENTS.into_iter().zip(self.moments.map(Tensor::shallow_clone)).collect(),
        };
        let mut entries = Vec::new();
        let mut sources = Vec::new();
        for (source, (prefix, tensor)) in flat.into_iter().enumerate() {
            for slot in &self.slots[part.slots.clone()] {
                let start = ELEMENT * (slot.offset - part.elements.start);
                let extent = Extent { source, bytes: start..start + ELEMENT * slot.len };
                entries.push(Entry { name: format!("{prefix}{}", slot.name), shape: shape(&slot.shape), extent });
            }
            sources.push(tensor);
        }
        if rank == 0 && kind != "optimizer" {
            for (name, buffer) in self.buffers {
                let extent = Extent { source: sources.len(), bytes: 0..ELEMENT * buffer.numel() };
                entries.push(Entry { name: name.clone(), shape: shape(&buffer.size()), extent });
                sources.push(buffer.to_kind(Kind::Float).contiguous());
            }
        }
        // safetensors orders tensors of one type by name. The same order makes files identical to those of other writers.
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let header = header(&entries)?;
        let extents = entries.into_iter().map(|entry| entry.extent).collect();
        Ok(FileLayout { name: name.to_owned(), is_weights: kind == "model", header, sources, extents })
    }
}

fn shape(size: &[i64]) -> Vec<usize> {
    size.iter().map(|&size| size as usize).collect()
}

/// Returns the length of the JSON header, then the JSON header, padded with spaces to a multiple of eight bytes.
fn header(entries: &[Entry]) -> Result<Vec<u8>, SafeTensorError> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(entries.len());
    for entry in entries {
        let start = end;
        end += entry.extent.bytes.len();
        let info = TensorInfo { dtype: Dtype::F32, shape: entry.shape.clone(), data_offsets: (start, end) };
        infos.push((entry.name.clone(), info));
    }
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut text = serde_json::to_vec(&Metadata::new(Some(about), infos)?)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    Ok(header)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::test_tensors::TestTensors;
    use arinar_collective::host_memory;
    use safetensors::tensor::TensorView;

    #[test]
    fn files_are_named_like_those_of_hugging_face() {
        assert_eq!(file_name("ema", 0, 4), "ema-00001-of-00004.safetensors");
        assert_eq!(rank_of("ema-00003-of-00004.safetensors"), Some((2, 4)));
        for other in ["state.json", "ema-00005-of-00004.safetensors", "ema-00000-of-00004.safetensors"] {
            assert_eq!(rank_of(other), None, "{other}");
        }
    }

    #[test]
    fn headers_equal_those_written_by_safetensors() {
        for file in TestTensors::new().set().lay_out(0, 1).unwrap() {
            let mut bytes = file.header;
            for extent in &file.extents {
                bytes.extend_from_slice(&host_memory::bytes(&file.sources[extent.source])[extent.bytes.clone()]);
            }
            let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let tensors: Vec<(String, TensorView<'_>)> = parsed.tensors();
            assert!(tensors.len() >= 3, "{}", file.name);
            let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
            assert!(safetensors::serialize(tensors, Some(metadata)).unwrap() == bytes, "{}", file.name);
        }
    }
}
