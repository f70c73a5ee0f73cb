//! The training loop.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arinar_protocol::Phase;

use crate::{
    checkpoint::{FORMAT_VERSION, Missing, Saver, State, Tensors},
    clip,
    config::{Every, NonFinite, TrainConfig},
    ema::Ema,
    exit::{Preemption, Stop},
    logs::{Logs, Spent},
    optimizer::{AdamW, Update},
    parameters::FlatParameters,
    progress::Report,
    signals::{Agreed, Signals},
    step::{Local, Worker},
    vitals::Vitals,
};
use arinar_collective::{Collective, Reduction, agree, gather};

/// The share of the time from a signal to SIGKILL that goes into sending the last checkpoint to a remote store.
const UPLOAD_SHARE: f64 = 0.7;

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
    /// How long after a signal the process may live, where that is known.
    pub grace: Option<Duration>,
    /// What the launcher is told.
    pub vitals: Arc<Vitals>,
    /// Seconds this rank had worked when it last said so.
    pub worked: f64,
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
        if begun && self.is_preempted()? {
            return Err(Stop::NotBegun);
        }
        self.vitals.enter(Phase::Compute);
        while self.step < self.plan.total_steps {
            let before = self.vitals.ledger.read().seconds;
            let done = self.step(last_save, &mut skipped)?;
            self.look_after_checkpoints(&done.agreed, &mut last_save)?;
            let now = self.vitals.ledger.read();
            let spent = Spent { step: now.seconds - before, run: now.run(), busy: &done.agreed.busy };
            self.logs.step(&done.report, &spent, self.saver.upload_status());
            if done.agreed.preempted && self.step < self.plan.total_steps {
                return self.preempted();
            }
        }
        self.finish(begun)
    }

    /// One step of a rehearsal, of which nothing is logged or saved; returns its seconds.
    ///
    /// # Errors
    /// As [`Training::run`].
    pub fn rehearse(&mut self) -> Result<f64, Stop> {
        let done = self.step(Instant::now(), &mut 0)?;
        Ok(done.report.step_time.as_secs_f64())
    }

    /// Batch, forward, backward, all-reduce, finite check, clip, AdamW, EMA.
    fn step(&mut self, last_save: Instant, skipped: &mut u64) -> Result<Step, Stop> {
        let began = Instant::now();
        let mut local = self.worker.accumulate(self.step);
        self.hear_of_checkpoints(&mut local);
        let signals = self.signals(&local, last_save);
        self.parameters.set_tail(&signals.to_tail(self.collective.rank(), self.collective.world_size()));
        self.vitals.enter(Phase::AllReduce);
        self.collective.all_reduce_sum(self.parameters.gradients_and_tail())?;
        self.vitals.enter(Phase::Compute);
        let micro_batches = self.collective.world_size() * self.worker.share.batch.accumulation;
        let agreed = Agreed::from_tail(&self.parameters.tail(), self.collective.world_size(), micro_batches);
        if agreed.failed {
            agree(self.collective, local.failure.take().map_or(Ok(()), Err))?;
        }
        let mean = 1.0 / micro_batches as f64;
        let grad_norm = clip::grad_norm(&self.parameters.gradients()) * mean;
        let epoch = self.plan.epoch(self.step, self.config.batch.global);
        let learning_rate = self.config.learning_rate(epoch);
        if agreed.loss.is_finite() && grad_norm.is_finite() {
            let coefficient = clip::clip_coefficient(grad_norm, self.config.optim.grad_clip);
            let update = Update { learning_rate, gradient_scale: mean * coefficient };
            self.wait_until_copied();
            self.optimizer.step(&mut self.parameters, &mut self.ema, update);
            self.share_update()?;
            *skipped = 0;
        } else {
            *skipped += 1;
            self.not_finite(&local, agreed.loss, grad_norm, *skipped)?;
        }
        self.step += 1;
        let step_time = began.elapsed();
        let epoch = self.plan.epoch(self.step, self.config.batch.global);
        let (step, loss) = (self.step, agreed.loss);
        self.vitals.stepped(step, loss, step_time.as_secs_f64());
        let report = Report { step, epoch, loss, learning_rate, grad_norm, step_time };
        Ok(Step { report, agreed })
    }

    /// A checkpoint that is being taken reads the weights until its copy is made.
    fn wait_until_copied(&mut self) {
        self.vitals.enter(Phase::Checkpoint);
        self.saver.wait_until_copied();
        self.vitals.enter(Phase::Compute);
    }

    /// Every rank has updated its part of the weights; now all get all of them.
    fn share_update(&self) -> Result<(), Stop> {
        self.vitals.enter(Phase::AllReduce);
        let parts = self.parameters.parts(self.collective.world_size());
        let ranges: Vec<_> = parts.into_iter().map(|part| part.elements).collect();
        self.collective.all_gather(&mut self.parameters.values().shallow_clone(), &ranges)?;
        self.vitals.enter(Phase::Compute);
        Ok(())
    }

    fn signals(&mut self, local: &Local, last_save: Instant) -> Signals {
        let seconds = self.vitals.ledger.read().seconds;
        let before = std::mem::replace(&mut self.worked, seconds.compute + seconds.data_wait);
        Signals {
            busy: (self.worked - before) as f32,
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
        self.note_saving();
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

    /// What came to light about checkpoints in the all-reduce, on all ranks at once.
    fn look_after_checkpoints(&mut self, agreed: &Agreed, last_save: &mut Instant) -> Result<(), Stop> {
        let save_due = agreed.save_due && self.step < self.plan.total_steps;
        if !(agreed.uploaded || agreed.written || save_due) {
            return Ok(());
        }
        self.vitals.enter(Phase::Checkpoint);
        if agreed.uploaded {
            self.saver.uploaded();
        }
        if agreed.written {
            self.committed()?;
        }
        if save_due {
            self.save()?;
            *last_save = Instant::now();
        }
        self.vitals.enter(Phase::Compute);
        Ok(())
    }

    /// Starts a checkpoint, unless there is one of this step; one that is still being written is finished first.
    fn save(&mut self) -> Result<(), Stop> {
        self.committed()?;
        if self.saver.has_started(self.step) {
            return Ok(());
        }
        let state = State {
            format_version: FORMAT_VERSION,
            step: self.step,
            optimizer_steps: self.optimizer.steps(),
            epoch: self.plan.epoch(self.step, self.config.batch.global),
            token: self.worker.source.position(),
            seconds: self.vitals.ledger.read().run(),
            ..self.state.clone()
        };
        let tensors = Tensors {
            parameters: &self.parameters,
            ema: &self.ema,
            optimizer: &self.optimizer,
            buffers: &self.buffers,
        };
        // That it waits for room is no hang: it has a limit of its own.
        let interrupted = || {
            self.vitals.enter(self.vitals.ledger.read().phase);
            self.preemption.requested()
        };
        self.saver.start(self.collective, &state, &tensors, &interrupted)
    }

    /// Says how far saving is.
    fn note_saving(&self) {
        self.vitals.saved(self.saver.saved_step().unwrap_or(0));
        if let Some(status) = self.saver.upload_status() {
            self.vitals.uploading(status);
        }
    }

    /// Waits for the files of the checkpoint that is being written, if any. It becomes valid in the background.
    fn committed(&mut self) -> Result<(), Stop> {
        // A run that goes on from this checkpoint must find the curves up to it.
        self.logs.flush();
        self.saver.commit(self.collective)
    }

    /// The end of the plan: the last checkpoint, and all of them where they belong.
    fn finish(&mut self, begun: bool) -> Result<(), Stop> {
        self.vitals.enter(Phase::Finish);
        if begun {
            self.save()?;
        }
        let preemption = self.preemption.clone();
        match self.settled(self.config.checkpoint.upload_timeout.0, &|| preemption.requested())? {
            None => Ok(()),
            Some(missing) if missing.interrupted => {
                self.logs.warn(&missing.what);
                Err(Stop::Preempted { step: self.step })
            }
            Some(missing) => agree(self.collective, Err(Stop::Failure(missing.what))),
        }
    }

    /// Saves and ends, because a signal came to some rank.
    fn preempted(&mut self) -> Result<(), Stop> {
        self.vitals.enter(Phase::Finish);
        self.save()?;
        let timeout = self.config.checkpoint.upload_timeout.0;
        let timeout = self.grace.map_or(timeout, |grace| timeout.min(grace.mul_f64(UPLOAD_SHARE)));
        if let Some(missing) = self.settled(timeout, &|| false)? {
            self.logs.warn(&missing.what);
        }
        Err(Stop::Preempted { step: self.step })
    }

    /// Waits until all checkpoints are where they belong. Returns what a remote store still lacks.
    fn settled(&mut self, timeout: Duration, interrupted: &dyn Fn() -> bool) -> Result<Option<Missing>, Stop> {
        self.committed()?;
        let (logs, vitals) = (&self.logs, &self.vitals);
        // That it waits for the store is no hang: it has a limit of its own.
        let interrupted = || {
            vitals.enter(Phase::Finish);
            interrupted()
        };
        let missing = self.saver.finish(self.collective, timeout, &interrupted, &mut |message| logs.message(message));
        self.note_saving();
        missing
    }

    /// Whether a signal has come to any rank; for the moments at which no all-reduce says so.
    fn is_preempted(&self) -> Result<bool, Stop> {
        let mut requested = [f64::from(u8::from(self.preemption.requested()))];
        self.collective.all_reduce_scalars(&mut requested, Reduction::Max)?;
        Ok(requested[0] > 0.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
