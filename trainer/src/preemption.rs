//! Preemption: SIGTERM and SIGUSR1 ask a run to save a checkpoint and to end.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use signal_hook::{
    consts::{SIGTERM, SIGUSR1},
    iterator::Signals,
};

/// How long the start-up of a run may continue after a signal. If it completes in time, the run ends in an orderly way.
const START_UP_GRACE: Duration = Duration::from_secs(5);
/// Time between two checks whether start-up has completed.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Whether a signal has asked this process to end.
#[derive(Clone, Debug, Default)]
pub struct Preemption(Arc<AtomicBool>);

impl Preemption {
    /// Catches the two signals from now on, which otherwise would end the process.
    ///
    /// Before the first step there is nothing to save. If a signal arrives during start-up, that is, while `is_starting` returns
    /// true, and start-up does not complete soon (it may be downloading or waiting for other ranks), `abandon` is called,
    /// which is expected to exit the process.
    ///
    /// # Errors
    /// Returns an error if the signal handlers or the thread cannot be created.
    pub fn watch(
        is_starting: impl Fn() -> bool + Send + 'static,
        abandon: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let preemption = Self::default();
        let mut signals = Signals::new([SIGTERM, SIGUSR1])?;
        let requested = Arc::clone(&preemption.0);
        let watch = move || {
            for _ in signals.forever() {
                if !requested.swap(true, Ordering::SeqCst) && !start_up_completes(&is_starting) {
                    abandon();
                }
            }
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
        Ok(preemption)
    }

    /// Returns true once a signal has arrived.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Waits until start-up has completed. Returns false if it takes too long.
fn start_up_completes(is_starting: &impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while is_starting() {
        if began.elapsed() >= START_UP_GRACE {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    true
}
