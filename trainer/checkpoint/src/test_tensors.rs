//! Tensors of a small model, for the tests of this crate.

use tch::{Device, Kind, Tensor};

use crate::layout::{Part, Slot, TensorSet};

/// Two parameters of odd sizes and a buffer, with values that distinguish them.
pub(crate) struct TestTensors {
    slots: Vec<Slot>,
    part: Part,
    pub parameters: Tensor,
    ema: Tensor,
    moments: [Tensor; 2],
    buffers: Vec<(String, Tensor)>,
}

impl TestTensors {
    pub(crate) fn new() -> Self {
        let slot = |name: &str, shape: &[i64], offset| {
            let len = shape.iter().product::<i64>() as usize;
            Slot { name: name.to_owned(), shape: shape.to_vec(), offset, len }
        };
        // Aligned to 16 elements, as in the flat memory of the trainer.
        let slots = vec![slot("z.weight", &[3, 5], 0), slot("a.bias", &[7], 16)];
        let options = (Kind::Float, Device::Cpu);
        let parameters = Tensor::zeros([32], options);
        for (slot, first) in slots.iter().zip([100.0, 0.5]) {
            let values = Tensor::arange(slot.len as i64, options) + first;
            slot.view(&parameters).copy_(&values.view(slot.shape.as_slice()));
        }
        let ema = parameters.copy();
        let moments = [Tensor::full([32], 0.25, options), Tensor::zeros([32], options)];
        let buffers = vec![("m.buffer".to_owned(), Tensor::from_slice(&[7.0_f64, 8.0]))];
        Self { slots, part: Part { slots: 0..2, elements: 0..32 }, parameters, ema, moments, buffers }
    }

    pub(crate) fn set(&self) -> TensorSet<'_> {
        TensorSet {
            slots: &self.slots,
            part: &self.part,
            parameters: &self.parameters,
            ema: &self.ema,
            moments: [&self.moments[0], &self.moments[1]],
            buffers: &self.buffers,
        }
    }
}
