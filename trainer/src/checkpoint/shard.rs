//! The tensors of one rank's files, between flat memory and safetensors.

use std::{borrow::Cow, collections::HashMap};

use safetensors::{Dtype, View};
use tch::{Kind, Tensor};

use crate::{ema::Ema, host, optimizer::AdamW, parameters::FlatParameters};

/// The three kinds of files.
pub const KINDS: [&str; 3] = ["model", "ema", "optimizer"];

/// Prefixes of AdamW's moments in the optimizer's files, as PyTorch calls them.
pub const MOMENTS: [&str; 2] = ["exp_avg.", "exp_avg_sq."];

/// The file of one rank, counted from 1 as Hugging Face does: `model-00001-of-00004.safetensors`.
pub fn file_name(kind: &str, rank: usize, world: usize) -> String {
    format!("{kind}-{:05}-of-{world:05}.safetensors", rank + 1)
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

impl Tensors<'_> {
    /// The contents of one of this rank's files: a copy, so that training can go on.
    ///
    /// # Errors
    /// What safetensors says.
    pub fn serialize(&self, kind: &str, rank: usize) -> Result<Vec<u8>, safetensors::SafeTensorError> {
        let part = self.optimizer.part();
        let slots = &self.parameters.slots()[part.slots.clone()];
        let named = |tensor: &Tensor, prefix: &str| -> Vec<(String, Floats)> {
            slots
                .iter()
                .map(|slot| {
                    let view = self.parameters.view_of_part(tensor, part, slot);
                    (format!("{prefix}{}", slot.name), Floats::new(view.to_device(tch::Device::Cpu)))
                })
                .collect()
        };
        let mut tensors = match kind {
            "model" => named(&part.of(self.parameters.values()), ""),
            "ema" => named(self.ema.values(), ""),
            _ => {
                let mut moments = named(self.optimizer.first_moment(), MOMENTS[0]);
                moments.extend(named(self.optimizer.second_moment(), MOMENTS[1]));
                moments
            }
        };
        if rank == 0 && kind != "optimizer" {
            let buffers = self
                .buffers
                .iter()
                .map(|(name, buffer)| (name.clone(), Floats::new(buffer.to_kind(Kind::Float).contiguous())));
            tensors.extend(buffers);
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize(tensors, Some(metadata))
    }
}

/// A contiguous float32 tensor in host memory, for safetensors.
struct Floats {
    tensor: Tensor,
    shape: Vec<usize>,
}

impl Floats {
    fn new(tensor: Tensor) -> Self {
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        Self { tensor, shape }
    }
}

impl View for Floats {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(host::bytes(&self.tensor))
    }

    fn data_len(&self) -> usize {
        host::bytes(&self.tensor).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_as_hugging_face_does() {
        assert_eq!(file_name("ema", 0, 4), "ema-00001-of-00004.safetensors");
    }
}
