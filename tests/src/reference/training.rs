//! The training step: random draws for its samples, loss and gradients, clipping, AdamW with its two parameter groups,
//! and the moving average of the weights.

use std::collections::BTreeMap;
use std::ops::Range;

use arinar_model::config::ModelConfig;
use arinar_model::mask::Mask;
use arinar_model::{Arinar, Precision, weights};
use tch::{Device, Kind, Tensor, nn};

use super::generator;
use super::random::{Draws, LABEL_DROP, MASK_ORDER, MASK_RATIO, libtorch_seed};
use super::records::Records;
use super::schedule::masked_tokens;

/// Tensors by their official names.
pub type Tensors = BTreeMap<String, Tensor>;

/// The settings of a run that determine its numbers.
#[derive(Clone, Debug)]
pub struct Run {
    /// Seed of the run.
    pub seed: u64,
    /// Sizes of the model, its dropout and its label drop.
    pub model: ModelConfig,
    /// Number format of the forward and backward passes.
    pub precision: Precision,
    /// Device of the forward and backward passes.
    pub device: Device,
    /// Number of samples in a step.
    pub global_batch: u64,
    /// Number of ranks that share them.
    pub ranks: u64,
    /// Number of micro-batches that each rank accumulates.
    pub accumulation: u64,
    /// Number of shards that are shuffled together; 0 for all.
    pub window: usize,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to AdamW's denominator.
    pub eps: f64,
    /// Weight decay of the parameters that decay.
    pub weight_decay: f64,
    /// Norm to which gradients are clipped.
    pub grad_clip: f64,
    /// Decay rate of the moving average of the weights.
    pub ema: f64,
}

/// Result of the forward and backward passes of a step.
pub struct Passes {
    /// Mean of the micro-batches' losses.
    pub loss: f64,
    /// Mean of the micro-batches' gradients, in float64.
    pub gradients: Tensors,
    /// Number of masked tokens in each picture.
    pub masked: i64,
    /// Number of samples whose label was dropped.
    pub dropped: usize,
}

/// Weights, averages and moments of the trained parameters.
pub struct Trained {
    /// The parameters.
    pub weights: Tensors,
    /// Their moving averages.
    pub ema: Tensors,
    /// Moving averages of the gradients.
    pub first_moment: Tensors,
    /// Moving averages of the squared gradients.
    pub second_moment: Tensors,
}

impl Run {
    /// Returns the state before the first step: weights initialised from the seed, equal averages, and zero moments.
    pub fn begin(&self) -> Trained {
        let _generator = generator();
        let (store, _) = self.model_with(None);
        let copy = |tensor: &Tensor| tensor.detach().to_device(Device::Cpu).copy();
        let copies = || weights::trainable(&store).iter().map(|(name, tensor)| (name.clone(), copy(tensor))).collect();
        let weights: Tensors = copies();
        let zeros = || weights.iter().map(|(name, tensor)| (name.clone(), tensor.zeros_like())).collect();
        Trained { first_moment: zeros(), second_moment: zeros(), ema: copies(), weights }
    }

    /// Returns the model with the given weights, or initialised from the seed.
    fn model_with(&self, given: Option<&Tensors>) -> (nn::VarStore, Arinar) {
        tch::manual_seed(libtorch_seed("initial weights", &[self.seed]));
        let mut store = nn::VarStore::new(Device::Cpu);
        let mut arinar = Arinar::new(&store.root(), &self.model);
        for (name, parameter) in weights::trainable(&store) {
            if let Some(given) = given {
                tch::no_grad(|| parameter.shallow_clone().copy_(&given[&name]));
            }
        }
        arinar.set_precision(self.precision);
        store.set_device(self.device);
        (store, arinar)
    }

    /// Runs the forward and backward passes of the step that follows `step` steps.
    pub fn passes(&self, records: &Records, weights: &Tensors, step: u64) -> Passes {
        let _generator = generator();
        let (store, arinar) = self.model_with(Some(weights));
        let length = self.model.sequence_length();
        let ratio = Draws::new(self.seed, MASK_RATIO, 0, step).uniform();
        let masked = masked_tokens(length, self.model.outer.mask_ratio_min, ratio);
        let mut passes = Passes { loss: 0.0, gradients: Tensors::new(), masked, dropped: 0 };
        let count = self.ranks * self.accumulation;
        let size = self.global_batch / count;
        // Samples are assigned to the first micro-batch of every rank, then to the second of every rank, and so on.
        for number in 0..count {
            let (rank, micro_batch) = (number % self.ranks, number / self.ranks);
            let first = step * self.global_batch + number * size;
            let inputs = self.inputs(records, first..first + size);
            passes.dropped += inputs.drop.iter().filter(|dropped| **dropped).count();
            tch::manual_seed(libtorch_seed("dropout", &[self.seed, step, rank, micro_batch]));
            let loss = inputs.loss(&arinar, masked, self.device);
            loss.backward();
            passes.loss += loss.double_value(&[]) / count as f64;
            for (name, parameter) in weights::trainable(&store) {
                passes.add(&name, &parameter, count as f64);
            }
        }
        passes
    }

    fn inputs(&self, records: &Records, positions: Range<u64>) -> Inputs {
        let (outer, length) = (&self.model.outer, self.model.sequence_length());
        let mut inputs = Inputs { latents: Vec::new(), labels: Vec::new(), drop: Vec::new(), orders: Vec::new() };
        for position in positions {
            let (epoch, sample) = records.at(position, self.seed, self.window);
            let draws = |purpose| Draws::new(self.seed, purpose, epoch, sample as u64);
            inputs.latents.push(records.latent(sample, epoch, self.seed, self.model.vae.scale));
            inputs.labels.push(records.records[sample].label);
            inputs.drop.push(draws(LABEL_DROP).uniform() < outer.label_drop);
            inputs.orders.push(Tensor::from_slice(&draws(MASK_ORDER).shuffled((0..length).collect::<Vec<i64>>())));
        }
        inputs
    }

    /// Returns the Euclidean norm of all gradients.
    pub fn grad_norm(&self, passes: &Passes) -> f64 {
        let squares = passes.gradients.values().map(|gradient| gradient.square().sum(Kind::Double).double_value(&[]));
        squares.sum::<f64>().sqrt()
    }

    /// Returns both moments after a step with these gradients, which are scaled down if their norm exceeds `grad_clip`.
    pub fn moments(&self, before: &Trained, passes: &Passes) -> [Tensors; 2] {
        let clip = (self.grad_clip / (self.grad_norm(passes) + 1e-6)).min(1.0);
        let updated = |moments: &Tensors, beta: f64, power: f64| {
            let one = |(name, moment): (&String, &Tensor)| {
                let gradient = (&passes.gradients[name] * clip).pow_tensor_scalar(power);
                (name.clone(), moment.to_kind(Kind::Double) * beta + gradient * (1.0 - beta))
            };
            moments.iter().map(one).collect()
        };
        [updated(&before.first_moment, self.betas[0], 1.0), updated(&before.second_moment, self.betas[1], 2.0)]
    }

    /// Returns the change of a parameter in AdamW's step number `count` (from 1), including weight decay.
    pub fn movement(&self, name: &str, weights: &Tensor, moments: [&Tensor; 2], rate: f64, count: i32) -> Tensor {
        let corrected = |moment: &Tensor, beta: f64| moment.to_kind(Kind::Double) / (1.0 - beta.powi(count));
        let (first, second) = (corrected(moments[0], self.betas[0]), corrected(moments[1], self.betas[1]));
        // Biases, one-dimensional parameters and the head do not decay.
        let decays = weights.dim() > 1 && !name.ends_with(".bias") && !name.starts_with("arhead.");
        let decay = if decays { self.weight_decay } else { 0.0 };
        (first / (second.sqrt() + self.eps) + weights.to_kind(Kind::Double) * decay) * -rate
    }

    /// Returns the moving average after a step.
    pub fn average(&self, before: &Tensor, weights: &Tensor) -> Tensor {
        before.to_kind(Kind::Double) * self.ema + weights.to_kind(Kind::Double) * (1.0 - self.ema)
    }
}

impl Passes {
    /// Adds a parameter's gradient and clears it. libtorch has no gradient for a parameter that the loss does not use.
    fn add(&mut self, name: &str, parameter: &Tensor, count: f64) {
        let mut gradient = parameter.grad();
        let sum = self
            .gradients
            .entry(name.to_owned())
            .or_insert_with(|| Tensor::zeros(parameter.size().as_slice(), (Kind::Double, Device::Cpu)));
        if gradient.defined() {
            *sum += gradient.to_device(Device::Cpu).to_kind(Kind::Double) / count;
            let _ = gradient.zero_();
        }
    }
}

/// The inputs of a micro-batch's loss.
struct Inputs {
    latents: Vec<Tensor>,
    labels: Vec<i64>,
    drop: Vec<bool>,
    orders: Vec<Tensor>,
}

impl Inputs {
    fn loss(&self, arinar: &Arinar, masked: i64, device: Device) -> Tensor {
        let on_device = |tensor: Tensor| tensor.to_device(device);
        let mask = Mask::from_orders(&on_device(Tensor::stack(&self.orders, 0)), masked);
        let (labels, drop) = (on_device(Tensor::from_slice(&self.labels)), on_device(Tensor::from_slice(&self.drop)));
        arinar.loss(&on_device(Tensor::stack(&self.latents, 0)), &labels, &drop, &mask, true)
    }
}
