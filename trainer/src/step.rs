//! One rank's part of a step: micro-batches through the model, gradients into flat memory.

use std::{fs::File, io::Write, sync::Arc};

use arinar_data::{
    random::{Purpose, SampleRandom, StepRandom},
    read::{Batch, SampleKey},
};
use arinar_model::{
    arinar::Arinar,
    config::ModelConfig,
    mask::Mask,
    schedule::{mask_ratio_quantile, num_masked},
};
use arinar_protocol::Phase;
use tch::Tensor;

use crate::{
    exit::Stop,
    seeds,
    source::{BatchSource, RankShare, data_error},
    vitals::Vitals,
};

/// What one rank knows after its backward passes.
pub struct Local {
    /// Sum of the micro-batches' losses.
    pub loss: f32,
    /// Why this rank cannot go on, if so.
    pub failure: Option<Stop>,
    /// Its samples, kept for the message should something not be finite.
    samples: Vec<SampleKey>,
    suspects: Vec<Suspect>,
}

/// A micro-batch whose loss is not finite.
struct Suspect {
    inputs: Inputs,
    samples: Vec<SampleKey>,
}

/// What the model's loss takes.
struct Inputs {
    latents: Tensor,
    labels: Tensor,
    drop_label: Tensor,
    orders: Tensor,
    num_masked: i64,
}

impl Inputs {
    fn loss(&self, model: &Arinar, train: bool) -> Tensor {
        let mask = Mask::from_orders(&self.orders, self.num_masked);
        model.loss(&self.latents, &self.labels, &self.drop_label, &mask, train)
    }

    fn sample(&self, index: usize) -> Self {
        let one = |tensor: &Tensor| tensor.narrow(0, index as i64, 1);
        Self {
            latents: one(&self.latents),
            labels: one(&self.labels),
            drop_label: one(&self.drop_label),
            orders: one(&self.orders),
            num_masked: self.num_masked,
        }
    }
}

/// Runs the micro-batches of one rank.
pub struct Worker {
    /// The model, whose parameters lie in flat memory.
    pub model: Arinar,
    /// Sizes of the model.
    pub config: ModelConfig,
    /// Seed of the run.
    pub seed: u64,
    /// This rank's part.
    pub share: RankShare,
    /// Where batches come from.
    pub source: Box<dyn BatchSource>,
    /// Where to note which samples were seen, for tests.
    pub sample_log: Option<File>,
    /// Told what the rank is doing.
    pub vitals: Arc<Vitals>,
}

impl Worker {
    /// Adds the gradients of this rank's part of step `step` (from 0) to the flat gradients.
    pub fn accumulate(&mut self, step: u64) -> Local {
        let mut local = Local { loss: 0.0, failure: None, samples: Vec::new(), suspects: Vec::new() };
        for micro_batch in 0..self.share.batch.accumulation {
            if let Err(stop) = self.micro_batch(step, micro_batch, &mut local) {
                local.failure = Some(stop);
                break;
            }
        }
        local
    }

    fn micro_batch(&mut self, step: u64, index: usize, local: &mut Local) -> Result<(), Stop> {
        self.vitals.enter(Phase::DataWait);
        let batch = self.source.next_batch().map_err(data_error)?;
        self.vitals.enter(Phase::Compute);
        local.samples.extend(&batch.samples);
        self.note(step, &batch.samples)?;
        let samples = batch.samples.clone();
        let inputs = self.inputs(step, batch);
        tch::manual_seed(seeds::dropout(self.seed, step, self.share.rank, index));
        let loss = inputs.loss(&self.model, true);
        loss.f_backward().map_err(Stop::failure)?;
        let loss = loss.double_value(&[]) as f32;
        local.loss += loss;
        if !loss.is_finite() {
            local.suspects.push(Suspect { inputs, samples });
        }
        Ok(())
    }

    /// Draws what a micro-batch needs: one share of masked tokens for the step, an order and a
    /// dropped label per sample.
    fn inputs(&self, step: u64, batch: Batch) -> Inputs {
        let length = self.config.sequence_length();
        let uniform = StepRandom::new(self.seed, step, Purpose::MaskRatio).uniform();
        let ratio = mask_ratio_quantile(uniform, self.config.outer.mask_ratio_min);
        let random = |key: &SampleKey, purpose| SampleRandom::new(self.seed, key.epoch, key.sample, purpose);
        let orders: Vec<i64> =
            batch.samples.iter().flat_map(|key| random(key, Purpose::MaskOrder).permutation(length as usize)).collect();
        let device = self.model.device();
        let label_drop = self.config.outer.label_drop;
        let drops: Vec<bool> =
            batch.samples.iter().map(|key| random(key, Purpose::LabelDrop).bernoulli(label_drop)).collect();
        Inputs {
            latents: batch.latents.to_device(device),
            labels: batch.labels.to_device(device),
            drop_label: Tensor::from_slice(&drops).to_device(device),
            orders: Tensor::from_slice(&orders).view([-1, length]).to_device(device),
            num_masked: num_masked(length, ratio),
        }
    }

    fn note(&mut self, step: u64, samples: &[SampleKey]) -> Result<(), Stop> {
        let Some(log) = &mut self.sample_log else { return Ok(()) };
        let lines: String = samples.iter().map(|key| format!("{step} {} {}\n", key.sample, key.epoch)).collect();
        log.write_all(lines.as_bytes()).map_err(Stop::failure)
    }

    /// Which of this rank's samples make the loss or gradient of a step not finite, for the user.
    pub fn blame(&self, local: &Local) -> String {
        let mut blamed = Vec::new();
        for suspect in &local.suspects {
            let before = blamed.len();
            for (index, key) in suspect.samples.iter().enumerate() {
                let inputs = suspect.inputs.sample(index);
                let loss = tch::no_grad(|| inputs.loss(&self.model, false)).double_value(&[]);
                if !loss.is_finite() {
                    blamed.push(*key);
                }
            }
            if blamed.len() == before {
                blamed.extend(&suspect.samples);
            }
        }
        describe(&blamed, &local.samples)
    }
}

/// Most samples named one by one.
const NAMED: usize = 8;

/// The blamed samples, or all of them where none is to blame more than another.
fn describe(blamed: &[SampleKey], all: &[SampleKey]) -> String {
    let samples = if blamed.is_empty() { all } else { blamed };
    let named: Vec<String> =
        samples.iter().take(NAMED).map(|key| format!("picture {} (sample {})", key.source_id, key.sample)).collect();
    let more = samples.len().saturating_sub(NAMED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let whole = samples.len() == all.len();
    let remark = if whole { " (all of this rank's)" } else { "" };
    format!("{}{rest}{remark}", named.join(", "))
}
