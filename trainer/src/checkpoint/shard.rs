//! The tensors of one rank's files, between flat memory and safetensors.

use std::{borrow::Cow, collections::HashMap};

use safetensors::{Dtype, View};
use tch::{Kind, Tensor};

use crate::{
    ema::Ema,
    host,
    optimizer::AdamW,
    parameters::{FlatParameters, Slot},
};

/// The three kinds of files.
pub const KINDS: [&str; 3] = ["model", "ema", "optimizer"];

/// Prefixes of AdamW's moments in the optimizer's files, as PyTorch calls them.
pub const MOMENTS: [&str; 2] = ["exp_avg.", "exp_avg_sq."];

/// The file of one rank, counted from 1 as Hugging Face does: `model-00001-of-00004.safetensors`.
pub fn file_name(kind: &str, rank: usize, world: usize) -> String {
    format!("{kind}-{:05}-of-{world:05}.safetensors", rank + 1)
}

/// The parameters that a rank writes: a contiguous part of about equal size.
pub fn share(slots: &[Slot], rank: usize, world: usize) -> &[Slot] {
    let total: usize = slots.iter().map(|slot| slot.len).sum();
    let boundary = |rank: usize| {
        let end = total * rank / world;
        let mut before = 0;
        slots
            .iter()
            .position(|slot| {
                before += slot.len;
                before - slot.len / 2 > end
            })
            .unwrap_or(slots.len())
    };
    let start = if rank == 0 { 0 } else { boundary(rank) };
    let end = if rank + 1 == world { slots.len() } else { boundary(rank + 1) };
    &slots[start..end.max(start)]
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
    pub fn serialize(
        &self,
        kind: &str,
        rank: usize,
        world: usize,
    ) -> Result<Vec<u8>, safetensors::SafeTensorError> {
        let slots = share(self.parameters.slots(), rank, world);
        let part = |flat: &Tensor, prefix: &str| -> Vec<(String, Floats)> {
            slots
                .iter()
                .map(|slot| {
                    let tensor = self.parameters.view(flat, slot).to_device(tch::Device::Cpu);
                    (format!("{prefix}{}", slot.name), Floats(tensor))
                })
                .collect()
        };
        let mut tensors = match kind {
            "model" => part(self.parameters.values(), ""),
            "ema" => part(self.ema.values(), ""),
            _ => {
                let mut moments = part(self.optimizer.first_moment(), MOMENTS[0]);
                moments.extend(part(self.optimizer.second_moment(), MOMENTS[1]));
                moments
            }
        };
        if rank == 0 && kind != "optimizer" {
            let buffers = self.buffers.iter().map(|(name, buffer)| {
                (name.clone(), Floats(buffer.to_kind(Kind::Float).contiguous()))
            });
            tensors.extend(buffers);
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize(tensors, Some(metadata))
    }
}

/// A contiguous float32 tensor in host memory, for safetensors.
struct Floats(Tensor);

impl View for Floats {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        // Tensor sizes are i64 here and usize there; both are 64 bits on the hosts supported.
        const { assert!(size_of::<usize>() == size_of::<i64>()) };
        self.0.size_slice()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let floats = host::slice(&self.0);
        let bytes = floats.iter().flat_map(|float| float.to_le_bytes());
        Cow::Owned(bytes.collect())
    }

    fn data_len(&self) -> usize {
        4 * self.0.numel()
    }
}
