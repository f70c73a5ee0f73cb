//! How far this rank is, for whoever watches: written by the training thread, read by the heartbeat.

use std::sync::atomic::{AtomicU64, Ordering};

use arinar_heartbeat::{Beat, Phase};

use crate::{ledger::Ledger, memory};

/// The live figures of one rank.
#[derive(Debug)]
pub struct Vitals {
    /// Where its time goes.
    pub ledger: Ledger,
    step: AtomicU64,
    total_steps: AtomicU64,
    saved_step: AtomicU64,
    global_batch: AtomicU64,
    // Floats, as bits.
    loss: AtomicU64,
    step_seconds: AtomicU64,
}

impl Vitals {
    /// Nothing is known yet but that the process starts.
    pub fn start() -> Self {
        Self {
            ledger: Ledger::start(),
            step: AtomicU64::new(0),
            total_steps: AtomicU64::new(0),
            saved_step: AtomicU64::new(0),
            global_batch: AtomicU64::new(0),
            loss: AtomicU64::new(f64::NAN.to_bits()),
            step_seconds: AtomicU64::new(0.0_f64.to_bits()),
        }
    }

    /// From now on the rank is in `phase`.
    pub fn enter(&self, phase: Phase) {
        self.ledger.enter(phase);
    }

    /// Where the run starts from and how long it is.
    pub fn plan(&self, step: u64, total_steps: u64, global_batch: u64) {
        self.step.store(step, Ordering::Relaxed);
        self.saved_step.store(step, Ordering::Relaxed);
        self.total_steps.store(total_steps, Ordering::Relaxed);
        self.global_batch.store(global_batch, Ordering::Relaxed);
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

    /// All of it, for the launcher.
    pub fn beat(&self) -> Beat {
        let reading = self.ledger.read();
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Beat {
            step: load(&self.step),
            total_steps: load(&self.total_steps),
            saved_step: load(&self.saved_step),
            phase: reading.phase,
            marks: reading.marks,
            seconds: reading.seconds,
            resident_bytes: memory::resident(),
            global_batch: load(&self.global_batch),
            loss: Some(f64::from_bits(load(&self.loss))).filter(|loss| loss.is_finite()),
            step_seconds: f64::from_bits(load(&self.step_seconds)),
        }
    }
}
