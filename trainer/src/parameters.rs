//! Flat memory: all trainable parameters are views of one contiguous tensor, and all gradients of another.
//!
//! As a result, the all-reduce, the gradient norm, clipping, AdamW and the moving averages are a few passes over flat memory
//! instead of hundreds of small calls, and their order is the same on every rank: parameters with weight decay come first,
//! then the others, each in the order given.

use std::collections::BTreeMap;

use arinar_checkpoint::{Part, Slot};
use tch::{Device, Kind, Tensor};

use arinar_collective::host_memory;

/// Each parameter starts at a multiple of 64 bytes, the alignment that matrix kernels are fastest with.
const ALIGNMENT: usize = 16;

/// Number of elements at the end of the gradient tensor for the flags that are piggybacked on the all-reduce
/// ([`crate::step_consensus`]). They are followed by one element per rank.
pub(crate) const FLAGS: usize = 16;

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
    /// The same as [`Self::among`] for a world size of 1.
    ///
    /// # Errors
    /// The same as those of [`Self::among`].
    pub fn new(variables: &[(String, Tensor)], decays: impl Fn(&str, &[i64]) -> bool) -> Result<Self, tch::TchError> {
        Self::among(variables, decays, 1)
    }

    /// Moves `variables` into flat memory. They must be leaf tensors that require a gradient; their order is kept within each
    /// group. The model's own handles see the new storage, and backward passes accumulate directly into the flat gradient,
    /// which starts at zero.
    ///
    /// `decays(name, shape)` returns whether weight decay applies to a parameter. Gradients are summed over `world` ranks.
    ///
    /// # Errors
    /// Returns an error if a variable is not a float32 leaf tensor, or if memory is exhausted.
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

    /// Returns the position of every parameter, in flat order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Returns the number of elements in the flat tensors, including gaps.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if the model has no parameters.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of trainable scalars, without gaps.
    pub fn parameter_count(&self) -> usize {
        self.slots.iter().map(|slot| slot.len).sum()
    }

    /// Returns the index of the first element without weight decay; all elements before it have weight decay.
    pub fn decay_end(&self) -> usize {
        self.decay_end
    }

    /// Returns the parameters, `[len]`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Returns the gradients followed by the tail: the tensor that the all-reduce sums.
    pub fn gradients_and_tail(&mut self) -> &mut Tensor {
        &mut self.gradients
    }

    /// Returns the gradients without the tail, `[len]`.
    pub fn gradients(&self) -> Tensor {
        self.gradients.narrow(0, 0, self.len as i64)
    }

    /// Sets all gradients and the tail to zero.
    pub fn zero_gradients(&mut self) {
        let _ = self.gradients.zero_();
    }

    /// Writes the tail: the `FLAGS` + ranks scalars that are piggybacked on the all-reduce.
    pub fn set_tail(&mut self, scalars: &[f32]) {
        let mut tail = self.gradients.narrow(0, self.len as i64, self.tail as i64);
        tail.copy_(&Tensor::from_slice(scalars));
    }

    /// Reads the tail.
    pub fn tail(&self) -> Vec<f32> {
        let tail = self.gradients.narrow(0, self.len as i64, self.tail as i64).to_device(Device::Cpu);
        host_memory::slice(&tail).to_vec()
    }

    /// Returns the part that contains all parameters.
    pub fn whole(&self) -> Part {
        Part { slots: 0..self.slots.len(), elements: 0..self.len }
    }

    /// Splits the parameters into one part per rank, of about equal size.
    pub fn parts(&self, world: usize) -> Vec<Part> {
        let ends: Vec<usize> = (1..=world).map(|rank| self.boundary(rank, world)).collect();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let element = |slot: usize| self.slots.get(slot).map_or(self.len, |slot| slot.offset);
        starts
            .zip(&ends)
            .map(|(start, &end)| Part { slots: start..end, elements: element(start)..element(end) })
            .collect()
    }

    /// Returns the slot at which the parts of the first `rank` ranks end: the one nearest to their share.
    fn boundary(&self, rank: usize, world: usize) -> usize {
        let share = self.len * rank / world;
        if rank == world {
            return self.slots.len();
        }
        self.slots.partition_point(|slot| slot.offset + slot.len / 2 < share)
    }
}

/// Lays out the parameters with weight decay first, each padded to the alignment.
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

/// Copies a variable into its slot and lets both the variable and its gradient refer to it.
fn adopt(variable: &Tensor, slot: &Slot, values: &Tensor, gradients: &Tensor) -> Result<(), tch::TchError> {
    let (offset, len) = (slot.offset as i64, slot.len as i64);
    let mut target = values.f_narrow(0, offset, len)?.f_view(slot.shape.as_slice())?;
    tch::no_grad(|| target.f_copy_(&variable.detach()))?;
    variable.shallow_clone().f_set_data(&target)?;
    // A gradient tensor exists only after a backward pass, and tch cannot set one. This creates one whose storage is then
    // replaced; later backward passes accumulate into it in place.
    variable.f_sum(Kind::Float)?.f_backward()?;
    let gradient_target = gradients.f_narrow(0, offset, len)?.f_view(slot.shape.as_slice())?;
    variable.f_grad()?.f_set_data(&gradient_target)
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
        let weight_gradient = flat.slots()[0].view(&gradients);
        assert_eq!(weight_gradient.double_value(&[1, 4]), 8.0);
        assert_eq!(flat.slots()[2].view(&gradients).double_value(&[0]), 2.0);
        assert_eq!(flat.slots()[1].view(&gradients).sum(Kind::Float).double_value(&[]), 0.0);
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
