//! AdamW (decoupled weight decay) over flat memory, with the moving average in the same pass.
//!
//! For each element, in PyTorch's order of operations: `p *= 1 - lr*wd`; `m += (1-b1)*(g-m)`;
//! `v = b2*v + (1-b2)*g*g`; `p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)`; then
//! `ema = rate*ema + (1-rate)*p`. Each of the five arrays is read and written once, so that
//! on the CPU the step is limited by memory bandwidth.

use std::ops::Range;

use arinar_checkpoint::Part;
use arinar_collective::host_memory;
use tch::Tensor;

use crate::{ema::Ema, parameters::FlatParameters};

/// The hyper-parameters of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub eps: f64,
    /// Weight decay of the parameters that have it.
    pub weight_decay: f64,
}

/// The parameters of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Factor for the accumulated gradients: the mean over ranks and micro-batches, times the clipping coefficient.
    pub gradient_scale: f64,
}

/// The state of AdamW: two moments per parameter and the number of steps.
pub struct AdamW {
    config: AdamWConfig,
    part: Part,
    first_moment: Tensor,
    second_moment: Tensor,
    steps: i64,
}

impl AdamW {
    /// Creates an optimizer of all parameters.
    pub fn new(parameters: &FlatParameters, config: AdamWConfig) -> Self {
        Self::of_part(parameters, parameters.whole(), config)
    }

    /// Creates an optimizer of a part of the parameters. Ranks with equal parameters and gradients share the work and the
    /// memory, and exchange the results.
    pub fn of_part(parameters: &FlatParameters, part: Part, config: AdamWConfig) -> Self {
        let zeros = || part.of(parameters.values()).zeros_like();
        let (first_moment, second_moment) = (zeros(), zeros());
        Self { config, part, first_moment, second_moment, steps: 0 }
    }

    /// Returns the part of the parameters that it updates.
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// Returns the number of steps.
    pub fn steps(&self) -> i64 {
        self.steps
    }

    /// Sets the number of steps, when resuming from a checkpoint. The moments are restored through their tensors.
    pub fn set_steps(&mut self, steps: i64) {
        self.steps = steps;
    }

    /// Returns the running mean of the gradients, one per element of the part.
    pub fn first_moment(&self) -> &Tensor {
        &self.first_moment
    }

    /// Returns the running mean of the squared gradients, one per element of the part.
    pub fn second_moment(&self) -> &Tensor {
        &self.second_moment
    }

    /// Makes one step on the parameters of the part and their moving averages. All gradients are zero afterwards.
    pub fn step(&mut self, parameters: &mut FlatParameters, ema: &mut Ema, update: Update) {
        self.steps += 1;
        let elements = &self.part.elements;
        let decay_end = parameters.decay_end().clamp(elements.start, elements.end) - elements.start;
        let coefficients = Coefficients::new(&self.config, update, self.steps, ema.rate());
        let mut values = self.part.of(parameters.values());
        let mut gradients = self.part.of(&parameters.gradients());
        let host = host_memory::is_host(&values);
        let arrays = Arrays {
            values: &mut values,
            gradients: &mut gradients,
            first_moment: &mut self.first_moment,
            second_moment: &mut self.second_moment,
            ema: ema.values_mut(),
        };
        if host {
            step_on_host(arrays, decay_end, &coefficients);
        } else {
            tch::no_grad(|| step_with_libtorch(&arrays, decay_end, &coefficients));
        }
        zero_outside(&parameters.gradients(), elements);
    }
}

/// Zeroes the gradients outside the part; those inside are zeroed by the update.
fn zero_outside(gradients: &Tensor, elements: &Range<usize>) {
    let after = gradients.size()[0] - elements.end as i64;
    let _ = gradients.narrow(0, 0, elements.start as i64).zero_();
    let _ = gradients.narrow(0, elements.end as i64, after).zero_();
}

/// The five flat tensors of one update.
struct Arrays<'a> {
    values: &'a mut Tensor,
    gradients: &'a mut Tensor,
    first_moment: &'a mut Tensor,
    second_moment: &'a mut Tensor,
    ema: &'a mut Tensor,
}

/// The constants of one step, computed in float64.
#[derive(Clone, Copy)]
struct Coefficients {
    gradient_scale: f64,
    keep: f64,
    first_weight: f64,
    second_decay: f64,
    step_size: f64,
    second_correction: f64,
    eps: f64,
    ema_rate: f64,
}

impl Coefficients {
    fn new(config: &AdamWConfig, update: Update, steps: i64, ema_rate: f64) -> Self {
        let [beta1, beta2] = config.betas;
        let steps = steps as f64;
        Self {
            gradient_scale: update.gradient_scale,
            keep: 1.0 - update.learning_rate * config.weight_decay,
            first_weight: 1.0 - beta1,
            second_decay: beta2,
            step_size: update.learning_rate / (1.0 - beta1.powf(steps)),
            second_correction: (1.0 - beta2.powf(steps)).sqrt(),
            eps: config.eps,
            ema_rate,
        }
    }

    fn without_decay(self) -> Self {
        Self { keep: 1.0, ..self }
    }
}

/// Corresponding slices of the five arrays.
struct Slices<'a> {
    values: &'a mut [f32],
    gradients: &'a mut [f32],
    first_moment: &'a mut [f32],
    second_moment: &'a mut [f32],
    ema: &'a mut [f32],
}

impl Slices<'_> {
    fn split_at(self, middle: usize) -> (Self, Self) {
        let (values, values_rest) = self.values.split_at_mut(middle);
        let (gradients, gradients_rest) = self.gradients.split_at_mut(middle);
        let (first_moment, first_rest) = self.first_moment.split_at_mut(middle);
        let (second_moment, second_rest) = self.second_moment.split_at_mut(middle);
        let (ema, ema_rest) = self.ema.split_at_mut(middle);
        (
            Self { values, gradients, first_moment, second_moment, ema },
            Self {
                values: values_rest,
                gradients: gradients_rest,
                first_moment: first_rest,
                second_moment: second_rest,
                ema: ema_rest,
            },
        )
    }
}

/// The fused pass, split over the threads of the rank.
fn step_on_host(arrays: Arrays<'_>, decay_end: usize, coefficients: &Coefficients) {
    let mut rest = Slices {
        values: host_memory::slice_mut(arrays.values),
        gradients: host_memory::slice_mut(arrays.gradients),
        first_moment: host_memory::slice_mut(arrays.first_moment),
        second_moment: host_memory::slice_mut(arrays.second_moment),
        ema: host_memory::slice_mut(arrays.ema),
    };
    let len = rest.values.len();
    let ranges = host_memory::ranges(len, host_memory::threads_for(len), 16);
    std::thread::scope(|scope| {
        for (index, range) in ranges.iter().enumerate() {
            let (part, others) = rest.split_at(range.len());
            rest = others;
            let decaying = decay_end.clamp(range.start, range.end) - range.start;
            let work = move || {
                let (with, without) = part.split_at(decaying);
                update_slices(with, coefficients);
                update_slices(without, &coefficients.without_decay());
            };
            if index + 1 == ranges.len() {
                work();
            } else {
                scope.spawn(work);
            }
        }
    });
}

/// One pass over five arrays of equal length, in a form that the compiler vectorizes.
fn update_slices(slices: Slices<'_>, coefficients: &Coefficients) {
    let scale = coefficients.gradient_scale as f32;
    let keep = coefficients.keep as f32;
    let first_weight = coefficients.first_weight as f32;
    let second_decay = coefficients.second_decay as f32;
    let second_weight = (1.0 - coefficients.second_decay) as f32;
    let step_size = coefficients.step_size as f32;
    let second_correction = coefficients.second_correction as f32;
    let eps = coefficients.eps as f32;
    let ema_rate = coefficients.ema_rate as f32;
    let ema_weight = (1.0 - coefficients.ema_rate) as f32;
    let moments = slices.first_moment.iter_mut().zip(slices.second_moment);
    let targets = slices.values.iter_mut().zip(slices.ema);
    for (((value, ema), gradient), (first, second)) in targets.zip(slices.gradients).zip(moments) {
        let g = *gradient * scale;
        let m = *first + first_weight * (g - *first);
        let v = *second * second_decay + second_weight * g * g;
        let p = *value * keep - step_size * (m / (v.sqrt() / second_correction + eps));
        *first = m;
        *second = v;
        *value = p;
        *ema = *ema * ema_rate + p * ema_weight;
        *gradient = 0.0;
    }
}

/// The update for tensors that are not in host memory.
fn step_with_libtorch(arrays: &Arrays<'_>, decay_end: usize, coefficients: &Coefficients) {
    let c = coefficients;
    let mut values = arrays.values.shallow_clone();
    let mut gradients = arrays.gradients.shallow_clone();
    let mut first = arrays.first_moment.shallow_clone();
    let mut second = arrays.second_moment.shallow_clone();
    let mut ema = arrays.ema.shallow_clone();
    let _ = gradients.g_mul_scalar_(c.gradient_scale);
    let _ = first.lerp_(&gradients, c.first_weight);
    let _ = second.g_mul_scalar_(c.second_decay);
    let _ = second.g_add_(&(gradients.square() * (1.0 - c.second_decay)));
    let _ = values.narrow(0, 0, decay_end as i64).g_mul_scalar_(c.keep);
    let denominator = second.sqrt() / c.second_correction + c.eps;
    let _ = values.g_sub_(&(&first / denominator * c.step_size));
    let _ = ema.g_mul_scalar_(c.ema_rate);
    let _ = ema.g_add_(&(&values * (1.0 - c.ema_rate)));
    let _ = gradients.zero_();
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use arinar_checkpoint::Slot;
    use tch::{Device, Kind};

    const CONFIG: AdamWConfig = AdamWConfig { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.02 };

    /// Values that look random; tests share libtorch's generator, so none are drawn from it.
    fn noise(shape: &[i64], seed: f64) -> Tensor {
        let index = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu));
        ((index + 1.0) * (seed + 0.7)).sin().to_kind(Kind::Float).view(shape)
    }

    struct Case {
        parameters: FlatParameters,
        optimizer: AdamW,
        ema: Ema,
    }

    /// A decaying matrix that several threads share, and a bias that does not decay.
    fn case() -> Case {
        let variable = |shape: &[i64]| noise(shape, 3.0).set_requires_grad(true);
        let variables = vec![("weight".to_owned(), variable(&[1024, 701])), ("bias".to_owned(), variable(&[77]))];
        let parameters = FlatParameters::new(&variables, |_, shape| shape.len() > 1).unwrap();
        let optimizer = AdamW::new(&parameters, CONFIG);
        let ema = Ema::new(&parameters, 0.99);
        Case { parameters, optimizer, ema }
    }

    fn fill_gradients(case: &Case, seed: f64) {
        for slot in case.parameters.slots() {
            let mut home = slot.view(&case.parameters.gradients());
            home.copy_(&noise(&slot.shape, seed));
        }
    }

    const UPDATE: Update = Update { learning_rate: 1e-2, gradient_scale: 0.25 };

    #[test]
    fn the_host_pass_agrees_with_libtorch() {
        let (mut host, mut torch) = (case(), case());
        for step in 1..=3_i32 {
            fill_gradients(&host, step.into());
            fill_gradients(&torch, step.into());
            host.optimizer.step(&mut host.parameters, &mut host.ema, UPDATE);
            let coefficients = Coefficients::new(&CONFIG, UPDATE, step.into(), 0.99);
            let decay_end = torch.parameters.decay_end();
            let arrays = Arrays {
                values: &mut torch.parameters.values().shallow_clone(),
                gradients: &mut torch.parameters.gradients(),
                first_moment: &mut torch.optimizer.first_moment,
                second_moment: &mut torch.optimizer.second_moment,
                ema: torch.ema.values_mut(),
            };
            step_with_libtorch(&arrays, decay_end, &coefficients);
        }
        let close = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-6;
        assert!(close(host.parameters.values(), torch.parameters.values()));
        assert!(close(host.ema.values(), torch.ema.values()));
        assert!(close(host.optimizer.first_moment(), torch.optimizer.first_moment()));
        assert!(close(host.optimizer.second_moment(), torch.optimizer.second_moment()));
        assert_eq!(host.parameters.gradients().abs().max().double_value(&[]), 0.0);
    }

    #[test]
    fn a_parameter_without_gradient_only_decays() {
        let mut case = case();
        let before = case.parameters.values().copy();
        case.optimizer.step(&mut case.parameters, &mut case.ema, UPDATE);
        let decayed = &before * f64::from((1.0 - 1e-2 * 0.02) as f32);
        let (weight, bias) = (&case.parameters.slots()[0], &case.parameters.slots()[1]);
        let view = |flat: &Tensor, slot: &Slot| slot.view(flat);
        assert_eq!(view(case.parameters.values(), weight), view(&decayed, weight));
        assert_eq!(view(case.parameters.values(), bias), view(&before, bias));
    }

    #[test]
    fn parts_together_are_the_whole() {
        let (mut whole, mut shared) = (case(), case());
        let parts = shared.parameters.parts(2);
        let mut workers: Vec<(AdamW, Ema)> = parts
            .iter()
            .map(|part| {
                let ema = Ema::of_part(&shared.parameters, part, 0.99);
                (AdamW::of_part(&shared.parameters, part.clone(), CONFIG), ema)
            })
            .collect();
        for step in 1..=2 {
            fill_gradients(&whole, step.into());
            whole.optimizer.step(&mut whole.parameters, &mut whole.ema, UPDATE);
            for (optimizer, ema) in &mut workers {
                fill_gradients(&shared, step.into());
                optimizer.step(&mut shared.parameters, ema, UPDATE);
                assert_eq!(shared.parameters.gradients().abs().max().double_value(&[]), 0.0);
            }
        }
        assert_eq!(whole.parameters.values(), shared.parameters.values());
        let emas: Vec<&Tensor> = workers.iter().map(|(_, ema)| ema.values()).collect();
        assert_eq!(whole.ema.values(), &Tensor::cat(&emas, 0));
    }

    #[test]
    fn threads_change_nothing() {
        let results: Vec<Tensor> = [1, 3]
            .into_iter()
            .map(|threads| {
                let before = tch::get_num_threads();
                let mut case = case();
                fill_gradients(&case, 9.0);
                tch::set_num_threads(threads);
                case.optimizer.step(&mut case.parameters, &mut case.ema, UPDATE);
                tch::set_num_threads(before);
                case.parameters.values().copy()
            })
            .collect();
        assert_eq!(results[0], results[1]);
    }
}
