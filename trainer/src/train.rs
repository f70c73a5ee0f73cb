//! The training loop.

use std::time::{Duration, Instant};

use arinar_checkpoint::{CheckpointManager, CheckpointState, MissingUploads};
use arinar_collective::{Reduction, agree, gather};
use arinar_protocol::Phase;

use crate::{
    clip,
    config::{Every, NonFinite, TrainConfig},
    logs::{Logs, StepReport, StepTime},
    model_state::ModelState,
    optimizer::Update,
    rank_context::RankContext,
    run_length::RunLength,
    step::{Local, Worker},
    step_consensus::{RankFlags, StepConsensus},
    stop::Stop,
};

/// The share of the grace period that may be spent on uploading the last checkpoint.
const UPLOAD_SHARE: f64 = 0.7;

/// The training of one rank.
pub struct Training<'a> {
    pub(crate) config: &'a TrainConfig,
    pub(crate) context: RankContext<'a>,
    pub(crate) state: ModelState,
    pub(crate) worker: Worker,
    pub(crate) checkpoints: CheckpointManager<'a>,
    pub(crate) logs: Logs,
    pub(crate) length: RunLength,
    /// Steps trained.
    pub(crate) step: u64,
    /// The state of checkpoints, except for what changes from step to step.
    pub(crate) checkpoint_template: CheckpointState<TrainConfig>,
    /// Consecutive steps that were skipped because the loss or gradient was not finite, including those of earlier starts.
    pub(crate) skipped: u64,
    /// Seconds this rank had worked at the last all-reduce.
    pub(crate) worked: f64,
}

/// The outcome of a step.
struct StepOutcome {
    report: StepReport,
    consensus: StepConsensus,
}

impl Training<'_> {
    /// Trains to the end of the run, and saves checkpoints on the way and at the end.
    ///
    /// # Errors
    /// Returns the reason why the run ends early. All ranks end together.
    pub fn run(&mut self) -> Result<(), Stop> {
        let first = self.step;
        let result = self.train().map_err(|stop| if self.step > first { stop.while_training() } else { stop });
        if matches!(result, Ok(()) | Err(Stop::Preempted { .. })) {
            self.logs.summary(&self.context.vitals.time.read().run());
        }
        if result.is_ok() {
            self.logs.message(&format!("done: {} steps, checkpoints in {}", self.step, self.config.run.dir));
        }
        // If NCCL is broken, the process must exit without waiting for the network.
        if !matches!(result, Err(Stop::Broken(_))) {
            self.logs.finish();
        }
        result
    }

    fn train(&mut self) -> Result<(), Stop> {
        let has_steps = self.step < self.length.total_steps;
        if has_steps && self.is_preempted()? {
            return Err(Stop::NotBegun);
        }
        let mut last_save = Instant::now();
        self.context.vitals.enter(Phase::Compute);
        while self.step < self.length.total_steps {
            let before = self.context.vitals.time.read().seconds;
            let outcome = self.step(last_save)?;
            self.advance_checkpoints(&outcome.consensus, &mut last_save)?;
            let now = self.context.vitals.time.read();
            let busy = &outcome.consensus.busy;
            let spent = StepTime { step: now.seconds - before, run: now.run(), busy };
            self.logs.step(&outcome.report, &spent, self.checkpoints.status().upload);
            if outcome.consensus.preempted && self.step < self.length.total_steps {
                return self.end_preempted();
            }
        }
        self.end_complete(has_steps)
    }

    /// Makes one step of a rehearsal, which is neither logged nor saved, and returns its duration in seconds.
    ///
    /// # Errors
    /// The same as those of [`Training::run`].
    pub(crate) fn rehearse(&mut self) -> Result<f64, Stop> {
        let outcome = self.step(Instant::now())?;
        Ok(outcome.report.step_time.as_secs_f64())
    }

    /// Makes one step: batch, forward and backward pass, all-reduce, finite check, clipping, AdamW, moving averages.
    fn step(&mut self, last_save: Instant) -> Result<StepOutcome, Stop> {
        let began = Instant::now();
        let mut local = self.worker.accumulate(self.step);
        let consensus = self.all_reduce(&mut local, last_save)?;
        let mean = 1.0 / self.micro_batches() as f64;
        let grad_norm = clip::grad_norm(&self.state.parameters.gradients()) * mean;
        let global_batch = self.config.batch.global;
        let learning_rate = self.config.learning_rate(self.length.epoch(self.step, global_batch));
        if consensus.loss.is_finite() && grad_norm.is_finite() {
            let coefficient = clip::clip_coefficient(grad_norm, self.config.optim.grad_clip);
            self.update(Update { learning_rate, gradient_scale: mean * coefficient })?;
            self.skipped = 0;
        } else {
            self.skipped += 1;
            self.handle_non_finite(&local, consensus.loss, grad_norm)?;
        }
        self.step += 1;
        let (step, loss, step_time) = (self.step, consensus.loss, began.elapsed());
        let epoch = self.length.epoch(step, global_batch);
        self.context.vitals.record_step(step, loss, step_time.as_secs_f64());
        let skipped_steps = step.saturating_sub(u64::try_from(self.state.optimizer.steps()).unwrap_or(0));
        let report = StepReport { step, epoch, loss, learning_rate, grad_norm, skipped_steps, step_time };
        Ok(StepOutcome { report, consensus })
    }

    /// Returns the number of micro-batches of a step on all ranks.
    fn micro_batches(&self) -> usize {
        self.context.collective.world_size() * self.worker.share.batch.accumulation
    }

    /// Sums the gradients over all ranks, and agrees on the outcome of the forward and backward passes.
    fn all_reduce(&mut self, local: &mut Local, last_save: Instant) -> Result<StepConsensus, Stop> {
        let collective = self.context.collective;
        let (rank, world_size) = (collective.rank(), collective.world_size());
        let flags = self.flags(local, last_save);
        self.state.parameters.set_tail(&flags.to_tail(rank, world_size));
        {
            let _phase = self.context.vitals.during(Phase::AllReduce);
            collective.all_reduce_sum(self.state.parameters.gradients_and_tail())?;
        }
        let tail = self.state.parameters.tail();
        let consensus = StepConsensus::from_tail(&tail, world_size, self.micro_batches());
        if consensus.failed {
            self.end_failed(local.failure.take())?;
        }
        Ok(consensus)
    }

    /// Updates this rank's part of the weights, then exchanges the parts.
    fn update(&mut self, update: Update) -> Result<(), Stop> {
        {
            // A checkpoint that is being saved reads the weights until they are copied.
            let _phase = self.context.vitals.during(Phase::Checkpoint);
            self.checkpoints.wait_until_copied();
        }
        let state = &mut self.state;
        state.optimizer.step(&mut state.parameters, &mut state.ema, update);
        let _phase = self.context.vitals.during(Phase::AllReduce);
        let parts = state.parameters.parts(self.context.collective.world_size());
        let ranges: Vec<_> = parts.into_iter().map(|part| part.elements).collect();
        self.context.collective.all_gather(&mut state.parameters.values().shallow_clone(), &ranges)?;
        Ok(())
    }

    /// Returns this rank's flags of the step. If saving has failed, so has the step.
    fn flags(&mut self, local: &mut Local, last_save: Instant) -> RankFlags {
        let poll = self.checkpoints.poll();
        for message in &poll.messages {
            self.logs.message(message);
        }
        self.record_save_status();
        if local.failure.is_none() {
            local.failure = poll.failure.map(Stop::from);
        }
        let seconds = self.context.vitals.time.read().seconds;
        let before = std::mem::replace(&mut self.worked, seconds.compute + seconds.data_wait);
        RankFlags {
            busy: (self.worked - before) as f32,
            loss: local.loss,
            preempted: self.context.preemption.is_requested(),
            failed: local.failure.is_some(),
            save_due: self.context.collective.rank() == 0 && self.is_save_due(last_save),
            checkpoint: poll.flags,
        }
    }

    /// Returns true if a checkpoint is due after the current step.
    fn is_save_due(&self, last_save: Instant) -> bool {
        let step = self.step + 1;
        let kept = self.length.keep_every_steps.is_some_and(|every| step.is_multiple_of(every));
        kept || match self.config.checkpoint.every {
            Every::Time(time) => last_save.elapsed() >= time,
            Every::Steps(steps) => step.is_multiple_of(steps),
        }
    }

    /// A loss or gradient that is not finite never reaches the weights: the run either stops or skips the step.
    fn handle_non_finite(&mut self, local: &Local, loss: f64, grad_norm: f64) -> Result<(), Stop> {
        let collective = self.context.collective;
        let samples = gather(collective, self.worker.blame(local).as_bytes())?;
        let samples: Vec<String> = samples
            .iter()
            .enumerate()
            .map(|(rank, text)| format!("rank {rank}: {}", String::from_utf8_lossy(text)))
            .collect();
        let what = format!(
            "step {}: the loss is {loss}, the gradient norm {grad_norm}; samples: {}",
            self.step + 1,
            samples.join("; ")
        );
        let max_skips = self.config.train.max_skips;
        let advice = match self.config.train.non_finite {
            NonFinite::Skip if self.skipped <= max_skips => {
                self.state.parameters.zero_gradients();
                self.logs.skipped_step(self.step + 1, &format!("{what}; this step is skipped"));
                return Ok(());
            }
            NonFinite::Skip => format!(
                "the {max_skips} steps before it (train.max_skips) were skipped, too: lower optim.lr_per_256, or look at \
                 these samples"
            ),
            NonFinite::Stop => {
                "the weights are as they were before it: lower optim.lr_per_256, look at these samples, or set \
                                train.non_finite=skip"
                    .to_owned()
            }
        };
        self.end_failed(Some(Stop::failure(format!("{what}; {advice}"))))
    }

    /// Ends all ranks together, because some of them have failed. A checkpoint whose files are still being written is completed
    /// first. All ranks call it together, each with its own failure, if it has one.
    fn end_failed(&mut self, failure: Option<Stop>) -> Result<(), Stop> {
        let vitals = std::sync::Arc::clone(&self.context.vitals);
        let _phase = vitals.during(Phase::Checkpoint);
        // A run that resumes from this checkpoint must find the curves up to it.
        self.logs.flush();
        let logs = &self.logs;
        match self.checkpoints.complete(&mut |message| logs.message(message)) {
            Ok(None) => {}
            Ok(Some(missing)) => logs.warn(&missing.what),
            // The run ends with the first error.
            Err(error) => logs.warn(&error.to_string()),
        }
        self.record_save_status();
        agree(self.context.collective, failure.map_or(Ok(()), Err))
    }

    /// Continues saving with what all ranks have agreed on, and starts a checkpoint if one is due.
    fn advance_checkpoints(&mut self, consensus: &StepConsensus, last_save: &mut Instant) -> Result<(), Stop> {
        let save_due = consensus.save_due && self.step < self.length.total_steps;
        let flags = consensus.checkpoint;
        if !(flags.uploaded || flags.written || save_due) {
            return Ok(());
        }
        let vitals = std::sync::Arc::clone(&self.context.vitals);
        let _phase = vitals.during(Phase::Checkpoint);
        if flags.written {
            // A run that resumes from this checkpoint must find the curves up to it.
            self.logs.flush();
        }
        self.checkpoints.advance(flags)?;
        if save_due {
            self.save()?;
            *last_save = Instant::now();
        }
        Ok(())
    }

    /// Starts saving a checkpoint of the current step.
    fn save(&mut self) -> Result<(), Stop> {
        self.logs.flush();
        let state = CheckpointState {
            step: self.step,
            optimizer_steps: self.state.optimizer.steps(),
            epoch: self.length.epoch(self.step, self.config.batch.global),
            token: self.worker.source.position(),
            skipped_steps: self.skipped,
            seconds: self.context.vitals.time.read().run(),
            ..self.checkpoint_template.clone()
        };
        let context = &self.context;
        // Waiting for room is not a hang, because it has its own limit.
        let interrupted = || {
            context.vitals.mark_progress();
            context.preemption.is_requested()
        };
        Ok(self.checkpoints.save(&state, &self.state.tensors(), &interrupted)?)
    }

    /// Reports to the launcher how far saving is.
    fn record_save_status(&self) {
        let status = self.checkpoints.status();
        self.context.vitals.record_saved(status.saved_step.unwrap_or(0));
        if let Some(upload) = status.upload {
            self.context.vitals.record_uploads(upload);
        }
    }

    /// Ends a complete run: saves the last checkpoint, and waits until all are saved and uploaded.
    fn end_complete(&mut self, has_steps: bool) -> Result<(), Stop> {
        self.context.vitals.enter(Phase::Finish);
        if has_steps {
            self.save()?;
        }
        let preemption = self.context.preemption.clone();
        match self.finish_saving(self.config.checkpoint.upload_timeout.0, &|| preemption.is_requested())? {
            None => Ok(()),
            Some(missing) if missing.interrupted => {
                self.logs.warn(&missing.what);
                Err(Stop::Preempted { step: self.step })
            }
            Some(missing) => agree(self.context.collective, Err(Stop::failure(missing.what))),
        }
    }

    /// Ends a preempted run: saves a checkpoint, and uploads it if time permits.
    fn end_preempted(&mut self) -> Result<(), Stop> {
        self.context.vitals.enter(Phase::Finish);
        self.save()?;
        let timeout = self.config.checkpoint.upload_timeout.0;
        let timeout = self.context.grace_period().map_or(timeout, |grace| timeout.min(grace.mul_f64(UPLOAD_SHARE)));
        if let Some(missing) = self.finish_saving(timeout, &|| false)? {
            self.logs.warn(&missing.what);
        }
        Err(Stop::Preempted { step: self.step })
    }

    /// Waits until all checkpoints are saved and uploaded. Returns what is not uploaded.
    fn finish_saving(
        &mut self,
        timeout: Duration,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Option<MissingUploads>, Stop> {
        self.logs.flush();
        let (logs, vitals) = (&self.logs, &self.context.vitals);
        // Waiting for the store is not a hang, because it has its own limit.
        let interrupted = || {
            vitals.mark_progress();
            interrupted()
        };
        let missing = self.checkpoints.finish(timeout, &interrupted, &mut |message| logs.message(message));
        self.record_save_status();
        Ok(missing?)
    }

    /// Returns whether any rank was asked to end. Used outside of steps, where no all-reduce carries the flag.
    fn is_preempted(&self) -> Result<bool, Stop> {
        let mut requested = [f64::from(u8::from(self.context.preemption.is_requested()))];
        self.context.collective.all_reduce_scalars(&mut requested, Reduction::Max)?;
        Ok(requested[0] > 0.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
