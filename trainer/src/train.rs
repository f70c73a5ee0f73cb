//! The training loop.

use std::time::{Duration, Instant};

use crate::{
    checkpoint::{FORMAT_VERSION, Saver, State, Tensors},
    clip,
    collective::{Collective, agree, all_gather, gather},
    config::{Every, NonFinite, TrainConfig},
    ema::Ema,
    exit::{Preemption, Stop},
    logs::{Logs, Timing},
    optimizer::{AdamW, Update},
    parameters::FlatParameters,
    progress::Report,
    signals::{Agreed, Signals},
    step::{Local, Worker},
};

/// Everything a rank trains with.
pub struct Training<'a> {
    /// The other ranks.
    pub collective: &'a dyn Collective,
    /// The experiment.
    pub config: &'a TrainConfig,
    /// Weights and gradients.
    pub parameters: FlatParameters,
    /// AdamW.
    pub optimizer: AdamW,
    /// Averages.
    pub ema: Ema,
    /// Forward and backward passes.
    pub worker: Worker,
    /// Checkpoints.
    pub saver: Saver,
    /// Curves and progress.
    pub logs: Logs,
    /// Signals from outside.
    pub preemption: Preemption,
    /// Steps trained.
    pub step: u64,
    /// Steps to train.
    pub plan: Plan,
    /// What a checkpoint says besides the tensors; step, epoch and token are filled in.
    pub state: State,
    /// Tensors of the state dict that are not trained.
    pub buffers: Vec<(String, tch::Tensor)>,
}

/// How long to train and when to save, in steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Steps in all.
    pub total_steps: u64,
    /// Samples of an epoch.
    pub samples: u64,
    /// A checkpoint that is kept for ever falls on every multiple.
    pub keep_every_steps: Option<u64>,
}

impl Plan {
    /// From epochs to steps.
    pub fn new(config: &TrainConfig, samples: u64) -> Self {
        let steps = |epochs: f64| {
            let steps = epochs * samples as f64 / config.batch.global as f64;
            (steps.ceil() as u64).max(1)
        };
        let most = config.train.max_steps.unwrap_or(u64::MAX);
        Self {
            total_steps: steps(config.optim.epochs).min(most),
            samples,
            keep_every_steps: config.checkpoint.keep_every_epochs.map(steps),
        }
    }

    /// Epochs trained after `step` steps.
    pub fn epoch(&self, step: u64, global_batch: usize) -> f64 {
        step as f64 * global_batch as f64 / self.samples as f64
    }
}

/// What one step did.
struct Step {
    report: Report,
    timing: Timing,
    agreed: Agreed,
}

impl Training<'_> {
    /// Trains to the end of the plan, saving on the way and at the end.
    ///
    /// # Errors
    /// Why the run ends early; all ranks end together.
    pub fn run(&mut self) -> Result<(), Stop> {
        let mut last_save = Instant::now();
        let mut skipped = 0;
        let begun = self.step < self.plan.total_steps;
        while self.step < self.plan.total_steps {
            let mut done = self.step(last_save, &mut skipped)?;
            let stalled = Instant::now();
            if done.agreed.uploaded {
                self.saver.uploaded();
            }
            if done.agreed.written {
                self.committed()?;
            }
            if done.agreed.save_due && self.step < self.plan.total_steps {
                self.save()?;
                last_save = Instant::now();
            }
            done.timing.checkpoint_stall += stalled.elapsed();
            self.logs.step(&done.report, &done.timing, self.saver.upload_status());
            if done.agreed.preempted && self.step < self.plan.total_steps {
                return self.preempted();
            }
        }
        if begun {
            self.save()?;
        }
        match self.settled()? {
            None => Ok(()),
            Some(missing) => agree(self.collective, Err(Stop::Failure(missing))),
        }
    }

    /// Batch, forward, backward, all-reduce, finite check, clip, AdamW, EMA.
    fn step(&mut self, last_save: Instant, skipped: &mut u64) -> Result<Step, Stop> {
        let began = Instant::now();
        let mut local = self.worker.accumulate(self.step);
        self.hear_of_checkpoints(&mut local);
        self.parameters.set_tail(self.signals(&local, last_save).to_tail());
        let reducing = Instant::now();
        self.collective.all_reduce_sum(self.parameters.gradients_and_tail())?;
        let mut all_reduce = reducing.elapsed();
        let micro_batches = self.collective.world() * self.worker.share.batch.accumulation;
        let agreed = Agreed::from_tail(self.parameters.tail(), self.collective.world(), micro_batches);
        if agreed.failed {
            agree(self.collective, local.failure.take().map_or(Ok(()), Err))?;
        }
        let mean = 1.0 / micro_batches as f64;
        let grad_norm = clip::grad_norm(&self.parameters.gradients()) * mean;
        let epoch = self.plan.epoch(self.step, self.config.batch.global);
        let learning_rate = self.config.learning_rate(epoch);
        let mut checkpoint_stall = Duration::ZERO;
        if agreed.loss.is_finite() && grad_norm.is_finite() {
            let coefficient = clip::clip_coefficient(grad_norm, self.config.optim.grad_clip);
            let update = Update { learning_rate, gradient_scale: mean * coefficient };
            checkpoint_stall = self.saver.wait_until_copied();
            self.optimizer.step(&mut self.parameters, &mut self.ema, update);
            all_reduce += self.share_update()?;
            *skipped = 0;
        } else {
            *skipped += 1;
            self.not_finite(&local, agreed.loss, grad_norm, *skipped)?;
        }
        self.step += 1;
        let step_time = began.elapsed();
        let epoch = self.plan.epoch(self.step, self.config.batch.global);
        let (step, loss) = (self.step, agreed.loss);
        let report = Report { step, epoch, loss, learning_rate, grad_norm, step_time };
        let timing = Timing { data_wait: local.data_wait, all_reduce, checkpoint_stall };
        Ok(Step { report, timing, agreed })
    }

    /// Every rank has updated its part of the weights; now all get all of them. Returns the time it took.
    fn share_update(&self) -> Result<Duration, Stop> {
        let began = Instant::now();
        let parts = self.parameters.parts(self.collective.world());
        all_gather(self.collective, self.parameters.values(), parts.into_iter().map(|part| part.elements))?;
        Ok(began.elapsed())
    }

    fn signals(&self, local: &Local, last_save: Instant) -> Signals {
        Signals {
            loss: local.loss,
            preempted: self.preemption.requested(),
            failed: local.failure.is_some(),
            written: self.saver.is_written(),
            save_due: self.collective.rank() == 0 && self.is_save_due(last_save),
            uploaded: self.saver.is_uploaded(),
        }
    }

    /// Tells what the threads that save have done. If they cannot go on, neither can the training.
    fn hear_of_checkpoints(&mut self, local: &mut Local) {
        for message in self.saver.poll() {
            self.logs.message(&message);
        }
        if local.failure.is_none() {
            local.failure = self.saver.failure();
        }
    }

    /// True if a checkpoint belongs after the present step.
    fn is_save_due(&self, last_save: Instant) -> bool {
        let step = self.step + 1;
        let by_plan = self.plan.keep_every_steps.is_some_and(|every| step.is_multiple_of(every));
        by_plan
            || match self.config.checkpoint.every {
                Every::Time(time) => last_save.elapsed() >= time,
                Every::Steps(steps) => step.is_multiple_of(steps),
            }
    }

    /// A loss or gradient that is not finite never reaches the weights: the run stops, or leaves
    /// the step out.
    fn not_finite(&mut self, local: &Local, loss: f64, grad_norm: f64, skipped: u64) -> Result<(), Stop> {
        let blamed = gather(self.collective, self.worker.blame(local).as_bytes())?;
        let blamed: Vec<String> = blamed
            .iter()
            .enumerate()
            .map(|(rank, text)| format!("rank {rank}: {}", String::from_utf8_lossy(text)))
            .collect();
        let what = format!(
            "step {}: the loss is {loss}, the gradient norm {grad_norm}; samples: {}",
            self.step + 1,
            blamed.join("; ")
        );
        let skip = self.config.train.non_finite == NonFinite::Skip;
        if skip && skipped <= self.config.train.max_skips {
            self.parameters.zero_gradients();
            self.logs.warn(&format!("{what}; this step is skipped"));
            return Ok(());
        }
        agree(
            self.collective,
            Err(Stop::Failure(format!(
                "{what}; the weights are as they were before it: lower optim.lr_per_256, look at \
                 these samples, or set train.non_finite=skip"
            ))),
        )
    }

    /// Starts a checkpoint; one that is still being written is finished first.
    fn save(&mut self) -> Result<(), Stop> {
        self.committed()?;
        let state = State {
            format_version: FORMAT_VERSION,
            step: self.step,
            optimizer_steps: self.optimizer.steps(),
            epoch: self.plan.epoch(self.step, self.config.batch.global),
            token: self.worker.source.position(),
            ..self.state.clone()
        };
        let tensors = Tensors {
            parameters: &self.parameters,
            ema: &self.ema,
            optimizer: &self.optimizer,
            buffers: &self.buffers,
        };
        self.saver.start(self.collective, &state, &tensors)
    }

    /// Waits for the files of the checkpoint that is being written, if any. It becomes valid in the background.
    fn committed(&mut self) -> Result<(), Stop> {
        // A run that goes on from this checkpoint must find the curves up to it.
        self.logs.flush();
        self.saver.commit(self.collective)
    }

    /// Waits until all checkpoints are where they belong. Returns what a remote store still lacks.
    fn settled(&mut self) -> Result<Option<String>, Stop> {
        self.committed()?;
        let logs = &self.logs;
        let timeout = self.config.checkpoint.upload_timeout.0;
        self.saver.finish(self.collective, timeout, &mut |message| logs.message(message))
    }

    fn preempted(&mut self) -> Result<(), Stop> {
        self.save()?;
        if let Some(missing) = self.settled()? {
            self.logs.warn(&missing);
        }
        Err(Stop::Preempted { step: self.step })
    }
}
