//! How far this rank is, for whoever watches: written by the training thread, read by the heartbeat.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arinar_protocol::{Beat, Phase};

use crate::{checkpoint::UploadStatus, ledger::Ledger};
use arinar_collective::machine::memory;

/// The live figures of one rank.
#[derive(Debug)]
pub struct Vitals {
    /// Where its time goes.
    pub ledger: Ledger,
    first_step: AtomicU64,
    step: AtomicU64,
    total_steps: AtomicU64,
    saved_step: AtomicU64,
    global_batch: AtomicU64,
    // Floats, as bits.
    loss: AtomicU64,
    step_seconds: AtomicU64,
    checkpoint_backlog_bytes: AtomicU64,
    store_unreachable: AtomicBool,
}

impl Vitals {
    /// Nothing is known yet but that the process starts.
    pub fn start() -> Self {
        Self {
            ledger: Ledger::start(),
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

    /// From now on the rank is in `phase`.
    pub fn enter(&self, phase: Phase) {
        self.ledger.enter(phase);
    }

    /// Where the run starts from and how long it is.
    pub fn plan(&self, step: u64, total_steps: u64, global_batch: u64) {
        self.first_step.store(step, Ordering::Relaxed);
        self.step.store(step, Ordering::Relaxed);
        self.saved_step.store(step, Ordering::Relaxed);
        self.global_batch.store(global_batch, Ordering::Relaxed);
        // Last, so that whoever sees it sees the first step, too.
        self.total_steps.store(total_steps, Ordering::Release);
    }

    /// A step is done.
    pub fn stepped(&self, step: u64, loss: f64, seconds: f64) {
        self.step.store(step, Ordering::Relaxed);
        self.loss.store(loss.to_bits(), Ordering::Relaxed);
        self.step_seconds.store(seconds.to_bits(), Ordering::Relaxed);
    }

    /// A checkpoint is valid.
    pub fn saved(&self, step: u64) {
        self.saved_step.fetch_max(step, Ordering::Relaxed);
    }

    /// How far a remote store is behind with the checkpoints.
    pub fn uploading(&self, status: UploadStatus) {
        self.checkpoint_backlog_bytes.store(status.backlog_bytes, Ordering::Relaxed);
        self.store_unreachable.store(!status.reachable, Ordering::Relaxed);
    }

    /// All of it, for the launcher.
    pub fn beat(&self) -> Beat {
        let total_steps = self.total_steps.load(Ordering::Acquire);
        let reading = self.ledger.read();
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
