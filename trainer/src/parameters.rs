//! All trainable parameters as views into one contiguous tensor, and their gradients likewise.
//!
//! So that the all-reduce, the norm, clipping, AdamW and the EMA are a few passes over flat memory
//! instead of hundreds of small calls, and so that their order is the same on every rank: the
//! names that decay first, then the others, each in the order given.

use std::{collections::BTreeMap, ops::Range};

use tch::{Device, Kind, Tensor};

use arinar_collective::host_memory;

/// Each parameter starts at a multiple of 64 bytes, which the matrix kernels like.
const ALIGNMENT: usize = 16;

/// Places at the end of the gradient tensor for the flags and sums that ride on the all-reduce; behind them is one more
/// for each rank.
pub const FLAGS: usize = 16;

/// Where one parameter lies in the flat tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Official name in the state dict.
    pub name: String,
    /// Shape of the parameter.
    pub shape: Vec<i64>,
    /// First element in the flat tensors.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// Some adjacent parameters: what one rank keeps the optimizer state and averages of, and writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which slots.
    pub slots: Range<usize>,
    /// Which elements of the flat tensors, gaps included.
    pub elements: Range<usize>,
}

impl Part {
    /// This part of a flat tensor of all parameters.
    pub(crate) fn of(&self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.elements.start as i64, self.elements.len() as i64)
    }
}

/// The flat memory of a model's trainable parameters.
///
/// # Shapes
/// `values` is `[len]`, the gradient tensor `[len + FLAGS + ranks]`, both float32 on the model's device.
/// The gaps between parameters are zero and stay zero.
pub struct FlatParameters {
    slots: Vec<Slot>,
    len: usize,
    decay_end: usize,
    tail: usize,
    values: Tensor,
    gradients: Tensor,
}

impl FlatParameters {
    /// [`Self::among`] one rank.
    ///
    /// # Errors
    /// As there.
    pub fn new(variables: &[(String, Tensor)], decays: impl Fn(&str, &[i64]) -> bool) -> Result<Self, tch::TchError> {
        Self::among(variables, decays, 1)
    }

    /// Moves `variables` (leaf tensors that require a gradient, in the order to be kept within
    /// each group) into flat memory; the model's own handles see the new storage, and backward
    /// accumulates straight into the flat gradient, which starts at zero.
    ///
    /// `decays(name, shape)` says which parameters weight decay applies to; the gradients are summed over `world` ranks.
    ///
    /// # Errors
    /// What libtorch reports: not a leaf, not float32, or no memory.
    pub fn among(
        variables: &[(String, Tensor)],
        decays: impl Fn(&str, &[i64]) -> bool,
        world: usize,
    ) -> Result<Self, tch::TchError> {
        let tail = FLAGS + world;
        let (slots, decay_end, len) = lay_out(variables, decays);
        let device = variables.first().map_or(Device::Cpu, |(_, variable)| variable.device());
        let values = Tensor::f_zeros([len as i64], (Kind::Float, device))?;
        let gradients = Tensor::f_zeros([(len + tail) as i64], (Kind::Float, device))?;
        let by_name: BTreeMap<&str, &Tensor> =
            variables.iter().map(|(name, variable)| (name.as_str(), variable)).collect();
        for slot in &slots {
            adopt(by_name[slot.name.as_str()], slot, &values, &gradients)?;
        }
        let _ = gradients.shallow_clone().f_zero_()?;
        Ok(Self { slots, len, decay_end, tail, values, gradients })
    }

    /// Every parameter's place, in flat order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Elements in the flat tensors, gaps included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a model without parameters.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of trainable scalars, gaps not counted.
    pub fn parameter_count(&self) -> usize {
        self.slots.iter().map(|slot| slot.len).sum()
    }

    /// Elements before this index decay, those from it on do not.
    pub fn decay_end(&self) -> usize {
        self.decay_end
    }

    /// The parameters, `[len]`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// The gradients followed by the tail: what the all-reduce sums.
    pub fn gradients_and_tail(&mut self) -> &mut Tensor {
        &mut self.gradients
    }

    /// The gradients without the tail, `[len]`.
    pub fn gradients(&self) -> Tensor {
        self.gradients.narrow(0, 0, self.len as i64)
    }

    /// Sets every gradient and the tail to zero.
    pub fn zero_gradients(&mut self) {
        let _ = self.gradients.zero_();
    }

    /// Writes the [`FLAGS`] + ranks scalars that ride on the all-reduce.
    pub fn set_tail(&mut self, scalars: &[f32]) {
        let mut tail = self.gradients.narrow(0, self.len as i64, self.tail as i64);
        tail.copy_(&Tensor::from_slice(scalars));
    }

    /// Reads the scalars that rode on the all-reduce.
    pub fn tail(&self) -> Vec<f32> {
        let tail = self.gradients.narrow(0, self.len as i64, self.tail as i64).to_device(Device::Cpu);
        host_memory::slice(&tail).to_vec()
    }

    /// One parameter's part of a flat tensor laid out like this one, under the parameter's shape.
    pub fn view(&self, flat: &Tensor, slot: &Slot) -> Tensor {
        flat.narrow(0, slot.offset as i64, slot.len as i64).view(slot.shape.as_slice())
    }

    /// All parameters as one part.
    pub fn whole(&self) -> Part {
        Part { slots: 0..self.slots.len(), elements: 0..self.len }
    }

    /// The parameters cut into one part per rank, of about equal size.
    pub fn parts(&self, world: usize) -> Vec<Part> {
        let ends: Vec<usize> = (1..=world).map(|rank| self.boundary(rank, world)).collect();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let element = |slot: usize| self.slots.get(slot).map_or(self.len, |slot| slot.offset);
        starts
            .zip(&ends)
            .map(|(start, &end)| Part { slots: start..end, elements: element(start)..element(end) })
            .collect()
    }

    /// The slot at which the parts of the first `rank` ranks end: the one nearest to their share.
    fn boundary(&self, rank: usize, world: usize) -> usize {
        let share = self.len * rank / world;
        if rank == world {
            return self.slots.len();
        }
        self.slots.partition_point(|slot| slot.offset + slot.len / 2 < share)
    }

    /// One parameter of a tensor that holds only `part`, under the parameter's shape.
    pub fn view_of_part(&self, tensor: &Tensor, part: &Part, slot: &Slot) -> Tensor {
        let offset = slot.offset - part.elements.start;
        tensor.narrow(0, offset as i64, slot.len as i64).view(slot.shape.as_slice())
    }
}

/// Places the decaying parameters first, each padded to the alignment.
fn lay_out(variables: &[(String, Tensor)], decays: impl Fn(&str, &[i64]) -> bool) -> (Vec<Slot>, usize, usize) {
    let mut slots = Vec::with_capacity(variables.len());
    let mut ends = [0, 0];
    let mut offset = 0;
    for (group, end) in [true, false].into_iter().zip(&mut ends) {
        for (name, variable) in variables {
            let shape = variable.size();
            if decays(name, &shape) != group {
                continue;
            }
            let len = variable.numel();
            slots.push(Slot { name: name.clone(), shape, offset, len });
            offset += len.next_multiple_of(ALIGNMENT);
        }
        *end = offset;
    }
    (slots, ends[0], ends[1])
}

/// Copies a variable into its slot and points both it and its gradient there.
fn adopt(variable: &Tensor, slot: &Slot, values: &Tensor, gradients: &Tensor) -> Result<(), tch::TchError> {
    let (offset, len) = (slot.offset as i64, slot.len as i64);
    let mut home = values.f_narrow(0, offset, len)?.f_view(slot.shape.as_slice())?;
    tch::no_grad(|| home.f_copy_(&variable.detach()))?;
    variable.shallow_clone().f_set_data(&home)?;
    // A gradient tensor exists only after a backward; tch cannot set one. This makes one whose
    // storage is then replaced: later backwards add to it in place.
    variable.f_sum(Kind::Float)?.f_backward()?;
    let gradient_home = gradients.f_narrow(0, offset, len)?.f_view(slot.shape.as_slice())?;
    variable.f_grad()?.f_set_data(&gradient_home)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn variables() -> Vec<(String, Tensor)> {
        let make =
            |shape: &[i64], value: f64| Tensor::full(shape, value, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        vec![
            ("bias".to_owned(), make(&[3], 2.0)),
            ("weight".to_owned(), make(&[3, 5], 0.5)),
            ("unused".to_owned(), make(&[2, 2], 7.0)),
        ]
    }

    fn decays(_: &str, shape: &[i64]) -> bool {
        shape.len() > 1
    }

    #[test]
    fn decay_group_comes_first_and_slots_are_aligned() {
        let flat = FlatParameters::new(&variables(), decays).unwrap();
        let names: Vec<_> = flat.slots().iter().map(|slot| slot.name.as_str()).collect();
        assert_eq!(names, ["weight", "unused", "bias"]);
        assert_eq!(flat.slots().iter().map(|slot| slot.offset).collect::<Vec<_>>(), [0, 16, 32]);
        assert_eq!((flat.decay_end(), flat.len(), flat.parameter_count()), (32, 48, 22));
    }

    #[test]
    fn backward_accumulates_into_flat_memory() {
        let variables = variables();
        let mut flat = FlatParameters::new(&variables, decays).unwrap();
        let (bias, weight) = (&variables[0].1, &variables[1].1);
        for _ in 0..2 {
            let input = Tensor::arange(5, (Kind::Float, Device::Cpu));
            (weight.matmul(&input) + bias).sum(Kind::Float).backward();
        }
        let gradients = flat.gradients();
        let weight_gradient = flat.view(&gradients, &flat.slots()[0]);
        assert_eq!(weight_gradient.double_value(&[1, 4]), 8.0);
        assert_eq!(flat.view(&gradients, &flat.slots()[2]).double_value(&[0]), 2.0);
        assert_eq!(flat.view(&gradients, &flat.slots()[1]).sum(Kind::Float).double_value(&[]), 0.0);
        flat.zero_gradients();
        assert_eq!(weight.grad().abs().sum(Kind::Float).double_value(&[]), 0.0);
    }

    #[test]
    fn the_model_sees_what_is_written_to_flat_memory() {
        let variables = variables();
        let flat = FlatParameters::new(&variables, decays).unwrap();
        assert_eq!(variables[1].1.double_value(&[2, 4]), 0.5);
        let _ = flat.values().shallow_clone().fill_(3.0);
        assert_eq!(variables[1].1.double_value(&[2, 4]), 3.0);
    }

    #[test]
    fn parts_are_adjacent_and_complete() {
        let sizes = [5, 100, 3, 3, 80, 1, 60, 60];
        let variable = |(index, size): (usize, &i64)| {
            let zeros = Tensor::zeros([*size], (Kind::Float, Device::Cpu));
            (index.to_string(), zeros.set_requires_grad(true))
        };
        let variables: Vec<_> = sizes.iter().enumerate().map(variable).collect();
        let flat = FlatParameters::new(&variables, decays).unwrap();
        for world in [1, 2, 3, 4, 8, 20] {
            let parts = flat.parts(world);
            assert_eq!(parts.len(), world);
            assert_eq!((parts[0].slots.start, parts[0].elements.start), (0, 0));
            let last = &parts[world - 1];
            assert_eq!((last.slots.end, last.elements.end), (sizes.len(), flat.len()));
            for pair in parts.windows(2) {
                assert_eq!(pair[0].slots.end, pair[1].slots.start);
                assert_eq!(pair[0].elements.end, pair[1].elements.start);
            }
        }
        let halves = flat.parts(2);
        assert!(halves[0].elements.len().abs_diff(halves[1].elements.len()) <= 112);
    }

    #[test]
    fn the_tail_is_outside_the_gradients() {
        let mut flat = FlatParameters::among(&variables(), decays, 3).unwrap();
        let mut scalars = [0.0; FLAGS + 3];
        scalars[3] = 4.5;
        scalars[FLAGS + 2] = 7.0;
        flat.set_tail(&scalars);
        assert_eq!(flat.tail(), scalars);
        assert_eq!(flat.gradients().abs().sum(Kind::Float).double_value(&[]), 0.0);
    }
}
