//! How the tensors of a training run lie in flat memory, and the set of them that a checkpoint holds.

use std::ops::Range;

use tch::Tensor;

/// The position of one parameter in the flat tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Official name in the state dict.
    pub name: String,
    /// Shape of the parameter.
    pub shape: Vec<i64>,
    /// Index of the first element in the flat tensors.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl Slot {
    /// Returns this parameter of a flat tensor of all parameters, in its shape.
    pub fn view(&self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.offset as i64, self.len as i64).view(self.shape.as_slice())
    }
}

/// A range of adjacent parameters. Each rank holds the moments and averages of one part, and writes its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Indices of the slots.
    pub slots: Range<usize>,
    /// Elements of the flat tensors, including the gaps between parameters.
    pub elements: Range<usize>,
}

impl Part {
    /// Returns this part of a flat tensor of all parameters.
    pub fn of(&self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.elements.start as i64, self.elements.len() as i64)
    }

    /// Returns one parameter of a tensor that holds only this part, in the shape of the parameter.
    pub fn view(&self, tensor: &Tensor, slot: &Slot) -> Tensor {
        let offset = slot.offset - self.elements.start;
        tensor.narrow(0, offset as i64, slot.len as i64).view(slot.shape.as_slice())
    }
}

/// The tensors of one rank that a checkpoint holds. All are float32.
#[derive(Clone, Copy)]
pub struct TensorSet<'a> {
    /// Position of every parameter.
    pub slots: &'a [Slot],
    /// The part whose moments and averages this rank holds.
    pub part: &'a Part,
    /// Values of all parameters.
    pub parameters: &'a Tensor,
    /// Moving averages of the part.
    pub ema: &'a Tensor,
    /// First and second moment of the part.
    pub moments: [&'a Tensor; 2],
    /// Tensors of the state dict that are not trained, by name.
    pub buffers: &'a [(String, Tensor)],
}

impl TensorSet<'_> {
    /// Returns the part that contains all parameters.
    pub(crate) fn whole(&self) -> Part {
        Part { slots: 0..self.slots.len(), elements: 0..self.parameters.numel() }
    }
}
