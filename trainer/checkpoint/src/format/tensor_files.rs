//! How the files of one rank are laid out: safetensors under the official names, straight from flat memory.

use std::{collections::HashMap, ops::Range};

use safetensors::{
    Dtype, SafeTensorError,
    tensor::{Metadata, TensorInfo},
};
use tch::{Kind, Tensor};

use super::CheckpointError;
use crate::{ema::Ema, optimizer::AdamW, parameters::FlatParameters};

/// The three kinds of files.
pub const KINDS: [&str; 3] = ["model", "ema", "optimizer"];

/// Prefixes of AdamW's moments in the optimizer's files, as PyTorch calls them.
pub const MOMENTS: [&str; 2] = ["exp_avg.", "exp_avg_sq."];

/// Bytes of an element.
const ELEMENT: usize = size_of::<f32>();

/// The file of one rank, counted from 1 as Hugging Face does: `model-00001-of-00004.safetensors`.
pub fn file_name(kind: &str, rank: usize, world: usize) -> String {
    format!("{kind}-{:05}-of-{world:05}.safetensors", rank + 1)
}

/// Rank and world that a file's name stands for; `None` for a file that is no rank's.
pub fn rank_of(name: &str) -> Option<(usize, usize)> {
    let (_, numbers) = name.strip_suffix(".safetensors")?.split_once('-')?;
    let (rank, world) = numbers.split_once("-of-")?;
    let (rank, world): (usize, usize) = (rank.parse().ok()?, world.parse().ok()?);
    (1..=world).contains(&rank).then(|| (rank - 1, world))
}

/// What a checkpoint is made of.
pub struct Tensors<'a> {
    /// Weights.
    pub parameters: &'a FlatParameters,
    /// Averages.
    pub ema: &'a Ema,
    /// Moments.
    pub optimizer: &'a AdamW,
    /// Tensors of the state dict that are not trained.
    pub buffers: &'a [(String, Tensor)],
}

/// A file to be written: its header, and handles of the tensors that its data lies in.
pub(super) struct Layout {
    /// Name within the checkpoint's folder.
    pub name: String,
    /// True for the weights, which must be finite.
    pub weights: bool,
    /// Length and contents of the header, as they stand in the file.
    pub header: Vec<u8>,
    /// Contiguous float32 tensors.
    pub sources: Vec<Tensor>,
    /// The data in the order of the file.
    pub stretches: Vec<Stretch>,
}

/// Some bytes of a source.
pub(super) struct Stretch {
    pub source: usize,
    pub bytes: Range<usize>,
}

/// A tensor of a file.
struct Entry {
    name: String,
    shape: Vec<usize>,
    stretch: Stretch,
}

impl Tensors<'_> {
    /// Bytes of the files of all ranks together, headers not counted.
    pub fn bytes(&self) -> u64 {
        4 * (ELEMENT * self.parameters.len()) as u64
    }

    /// The files of one rank. Nothing is copied: the tensors share memory with the training, but for the small
    /// ones that are not trained.
    ///
    /// # Errors
    /// What safetensors says.
    pub(super) fn lay_out(&self, rank: usize, world: usize) -> Result<Vec<Layout>, CheckpointError> {
        let lay_out = |kind: &&str| {
            let name = file_name(kind, rank, world);
            self.lay_out_kind(kind, &name, rank).map_err(|source| CheckpointError::Layout { file: name, source })
        };
        KINDS.iter().map(lay_out).collect()
    }

    fn lay_out_kind(&self, kind: &str, name: &str, rank: usize) -> Result<Layout, SafeTensorError> {
        let part = self.optimizer.part();
        let flat = match kind {
            "model" => vec![("", part.of(self.parameters.values()))],
            "ema" => vec![("", self.ema.values().shallow_clone())],
            _ => vec![
                (MOMENTS[0], self.optimizer.first_moment().shallow_clone()),
                (MOMENTS[1], self.optimizer.second_moment().shallow_clone()),
            ],
        };
        let mut entries = Vec::new();
        let mut sources = Vec::new();
        for (source, (prefix, tensor)) in flat.into_iter().enumerate() {
            for slot in &self.parameters.slots()[part.slots.clone()] {
                let start = ELEMENT * (slot.offset - part.elements.start);
                let stretch = Stretch { source, bytes: start..start + ELEMENT * slot.len };
                entries.push(Entry { name: format!("{prefix}{}", slot.name), shape: shape(&slot.shape), stretch });
            }
            sources.push(tensor);
        }
        if rank == 0 && kind != "optimizer" {
            for (name, buffer) in self.buffers {
                let stretch = Stretch { source: sources.len(), bytes: 0..ELEMENT * buffer.numel() };
                entries.push(Entry { name: name.clone(), shape: shape(&buffer.size()), stretch });
                sources.push(buffer.to_kind(Kind::Float).contiguous());
            }
        }
        // As safetensors orders tensors of one type, so that files are the same whoever writes them.
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let header = header(&entries)?;
        let stretches = entries.into_iter().map(|entry| entry.stretch).collect();
        Ok(Layout { name: name.to_owned(), weights: kind == "model", header, sources, stretches })
    }
}

fn shape(size: &[i64]) -> Vec<usize> {
    size.iter().map(|&size| size as usize).collect()
}

/// The length of the description, then the description, padded with spaces to a multiple of eight.
fn header(entries: &[Entry]) -> Result<Vec<u8>, SafeTensorError> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(entries.len());
    for entry in entries {
        let start = end;
        end += entry.stretch.bytes.len();
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
pub(super) mod tests {
    use super::*;
    use crate::optimizer::AdamWConfig;
    use arinar_collective::host_memory;
    use safetensors::tensor::TensorView;
    use tch::Device;

    /// A model of two parameters of odd sizes and a buffer, with values that tell them apart.
    pub fn with_tensors<T>(run: impl FnOnce(&Tensors<'_>) -> T) -> T {
        let variable = |shape: &[i64], from: f64| {
            let len: i64 = shape.iter().product();
            let values = Tensor::arange(len, (Kind::Float, Device::Cpu)) + from;
            values.view(shape).set_requires_grad(true)
        };
        let variables = [("z.weight".to_owned(), variable(&[3, 5], 100.0)), ("a.bias".to_owned(), variable(&[7], 0.5))];
        let parameters = FlatParameters::new(&variables, |_, shape| shape.len() > 1).unwrap();
        let ema = Ema::new(&parameters, 0.5);
        let config = AdamWConfig { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.0 };
        let optimizer = AdamW::new(&parameters, config);
        let _ = optimizer.first_moment().shallow_clone().fill_(0.25);
        let buffers = [("m.buffer".to_owned(), Tensor::from_slice(&[7.0_f64, 8.0]))];
        run(&Tensors { parameters: &parameters, ema: &ema, optimizer: &optimizer, buffers: &buffers })
    }

    #[test]
    fn files_are_named_as_hugging_face_does() {
        assert_eq!(file_name("ema", 0, 4), "ema-00001-of-00004.safetensors");
        assert_eq!(rank_of("ema-00003-of-00004.safetensors"), Some((2, 4)));
        for other in ["state.json", "ema-00005-of-00004.safetensors", "ema-00000-of-00004.safetensors"] {
            assert_eq!(rank_of(other), None, "{other}");
        }
    }

    #[test]
    fn headers_are_those_that_safetensors_writes() {
        let files = with_tensors(|tensors| tensors.lay_out(0, 1)).unwrap();
        for file in files {
            let mut bytes = file.header;
            for stretch in &file.stretches {
                bytes.extend_from_slice(&host_memory::bytes(&file.sources[stretch.source])[stretch.bytes.clone()]);
            }
            let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let tensors: Vec<(String, TensorView<'_>)> = parsed.tensors();
            assert!(tensors.len() >= 3, "{}", file.name);
            let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
            assert!(safetensors::serialize(tensors, Some(about)).unwrap() == bytes, "{}", file.name);
        }
    }
}
