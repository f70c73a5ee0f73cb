//! The vital figures of this rank: written by the training thread, read by the heartbeat.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arinar_checkpoint::UploadStatus;
use arinar_protocol::{Beat, Phase};

use crate::time_accounting::TimeAccounting;
use arinar_collective::machine::memory;

/// Progress, loss, memory and time of one rank.
#[derive(Debug)]
pub struct Vitals {
    /// How the time of the rank is spent.
    pub time: TimeAccounting,
    first_step: AtomicU64,
    step: AtomicU64,
    total_steps: AtomicU64,
    saved_step: AtomicU64,
    global_batch: AtomicU64,
    // The bits of floats.
    loss: AtomicU64,
    step_seconds: AtomicU64,
    checkpoint_backlog_bytes: AtomicU64,
    store_unreachable: AtomicBool,
}

impl Vitals {
    /// Creates the figures of a process that starts up.
    pub fn start() -> Self {
        Self {
            time: TimeAccounting::start(),
            first_step: AtomicU64::new(0),
            step: AtomicU64::new(0),
            total_steps: AtomicU64::new(0),
            saved_step: AtomicU64::new(0),
            global_batch: AtomicU64::new(0),
            loss: AtomicU64::new(f64::NAN.to_bits()),
            step_seconds: AtomicU64::new(0.0_f64.to_bits()),
            checkpoint_backlog_bytes: AtomicU64::new(0),
            store_unreachable: AtomicBool::new(false),
        }
    }

    /// Enters a phase for good.
    pub fn enter(&self, phase: Phase) {
        self.time.enter(phase);
    }

    /// Enters a phase. Dropping the returned guard returns to the previous phase.
    pub fn during(&self, phase: Phase) -> PhaseGuard<'_> {
        let previous = self.time.read().phase;
        self.time.enter(phase);
        PhaseGuard { time: &self.time, previous }
    }

    /// Enters the current phase again, which shows to the launcher that the rank makes progress.
    pub fn mark_progress(&self) {
        self.time.enter(self.time.read().phase);
    }

    /// Sets the step at which the run resumes, and its length.
    pub fn set_run(&self, step: u64, total_steps: u64, global_batch: u64) {
        self.first_step.store(step, Ordering::Relaxed);
        self.step.store(step, Ordering::Relaxed);
        self.saved_step.store(step, Ordering::Relaxed);
        self.global_batch.store(global_batch, Ordering::Relaxed);
        // Stored last, so that a reader that sees it also sees the first step.
        self.total_steps.store(total_steps, Ordering::Release);
    }

    /// Records a completed step.
    pub fn record_step(&self, step: u64, loss: f64, seconds: f64) {
        self.step.store(step, Ordering::Relaxed);
        self.loss.store(loss.to_bits(), Ordering::Relaxed);
        self.step_seconds.store(seconds.to_bits(), Ordering::Relaxed);
    }

    /// Records a valid checkpoint.
    pub fn record_saved(&self, step: u64) {
        self.saved_step.fetch_max(step, Ordering::Relaxed);
    }

    /// Records the progress of uploads.
    pub fn record_uploads(&self, status: UploadStatus) {
        self.checkpoint_backlog_bytes.store(status.backlog_bytes, Ordering::Relaxed);
        self.store_unreachable.store(!status.reachable, Ordering::Relaxed);
    }

    /// Returns all figures for the launcher.
    pub fn beat(&self) -> Beat {
        let total_steps = self.total_steps.load(Ordering::Acquire);
        let reading = self.time.read();
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Beat {
            step: load(&self.step),
            first_step: load(&self.first_step),
            total_steps,
            saved_step: load(&self.saved_step),
            phase: reading.phase,
            marks: reading.marks,
            seconds: reading.seconds,
            earlier: reading.earlier,
            resident_bytes: memory::resident(),
            global_batch: load(&self.global_batch),
            loss: Some(f64::from_bits(load(&self.loss))).filter(|loss| loss.is_finite()),
            step_seconds: f64::from_bits(load(&self.step_seconds)),
            checkpoint_backlog_bytes: load(&self.checkpoint_backlog_bytes),
            store_unreachable: self.store_unreachable.load(Ordering::Relaxed),
        }
    }
}

/// Returns to the previous phase when it is dropped.
#[must_use]
pub struct PhaseGuard<'a> {
    time: &'a TimeAccounting,
    previous: Phase,
}

impl Drop for PhaseGuard<'_> {
    fn drop(&mut self) {
        self.time.enter(self.previous);
    }
}
