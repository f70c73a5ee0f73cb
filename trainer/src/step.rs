//! One rank's part of a step: forward and backward passes of its micro-batches.

use std::{fs::File, io::Write, sync::Arc};

use arinar_data::{
    random::{Purpose, SampleRandom, StepRandom},
    read::{Batch, BatchSource, SampleKey},
};
use arinar_model::{
    arinar::Arinar,
    config::ModelConfig,
    mask::Mask,
    schedule::{mask_ratio_quantile, num_masked},
};
use arinar_protocol::Phase;
use tch::Tensor;

use crate::{batch_source::RankShare, seeds, stop::Stop, vitals::Vitals};

/// The outcome of the forward and backward passes of one rank.
pub(crate) struct Local {
    /// Sum of the losses of the micro-batches.
    pub loss: f32,
    /// The reason why this rank cannot continue.
    pub failure: Option<Stop>,
    /// Its samples, for the message if the loss or gradient is not finite.
    samples: Vec<SampleKey>,
    suspects: Vec<Suspect>,
}

/// A micro-batch whose loss is not finite.
struct Suspect {
    inputs: Inputs,
    samples: Vec<SampleKey>,
}

/// The inputs of the model's loss.
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

/// Computes the forward and backward passes of one rank.
pub(crate) struct Worker {
    /// The model, whose parameters are in flat memory.
    pub model: Arinar,
    /// Configuration of the model.
    pub config: ModelConfig,
    /// Seed of the run.
    pub seed: u64,
    /// This rank's share of the global batch.
    pub share: RankShare,
    /// Source of the batches.
    pub source: Box<dyn BatchSource>,
    /// Log of the samples, for tests.
    pub sample_log: Option<File>,
    /// Figures for the launcher.
    pub vitals: Arc<Vitals>,
}

impl Worker {
    /// Accumulates the gradients of this rank's part of step `step`, counted from 0, into the flat gradients.
    pub(crate) fn accumulate(&mut self, step: u64) -> Local {
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
        let batch = {
            let _phase = self.vitals.during(Phase::DataWait);
            self.source.next_batch()?
        };
        local.samples.extend(&batch.samples);
        self.log_samples(step, &batch.samples)?;
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

    /// Draws the random inputs of a micro-batch: one ratio of masked tokens for the step, and for each sample an order of its
    /// tokens and whether its label is dropped.
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

    fn log_samples(&mut self, step: u64, samples: &[SampleKey]) -> Result<(), Stop> {
        let Some(log) = &mut self.sample_log else { return Ok(()) };
        let lines: String = samples.iter().map(|key| format!("{step} {} {}\n", key.sample, key.epoch)).collect();
        log.write_all(lines.as_bytes()).map_err(Stop::failure)
    }

    /// Describes which of this rank's samples make the loss or gradient of a step not finite.
    pub(crate) fn blame(&self, local: &Local) -> String {
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

/// Maximum number of samples that are listed.
const LISTED: usize = 8;

/// Lists the blamed samples, or all samples if none can be blamed.
fn describe(blamed: &[SampleKey], all: &[SampleKey]) -> String {
    let samples = if blamed.is_empty() { all } else { blamed };
    let named: Vec<String> =
        samples.iter().take(LISTED).map(|key| format!("picture {} (sample {})", key.source_id, key.sample)).collect();
    let more = samples.len().saturating_sub(LISTED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let whole = samples.len() == all.len();
    let remark = if whole { " (all of this rank's)" } else { "" };
    format!("{}{rest}{remark}", named.join(", "))
}
