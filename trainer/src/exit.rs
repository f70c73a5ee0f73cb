//! How the program ends: exit codes, the errors behind them, and the signals that end a run early.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arinar_model::text::one_line;
use signal_hook::consts::{SIGTERM, SIGUSR1};

/// The run reached its end.
pub const DONE: u8 = 0;
/// Something went wrong that a changed configuration would not cure.
pub const FAILED: u8 = 1;
/// Ended by a signal after a checkpoint: start again to go on ("requeue me").
pub const PREEMPTED: u8 = 75;
/// The configuration, or what it points to, must be changed.
pub const CONFIGURATION: u8 = 78;

/// Why a rank ends early.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The user must change something; exit code 78.
    #[error("{0}")]
    Configuration(String),
    /// Anything else; exit code 1.
    #[error("{0}")]
    Failure(String),
    /// A signal asked for it and a checkpoint is saved; exit code 75.
    #[error("stopped by a signal after saving step {step}; start again to go on")]
    Preempted {
        /// The saved step.
        step: u64,
    },
    /// Another rank ends the run and says why; this one only ends with the same code.
    #[error("stopped because of rank {rank}")]
    Elsewhere {
        /// The rank that tells.
        rank: usize,
        /// The code all ranks end with.
        code: u8,
    },
}

impl Stop {
    /// A [`Stop::Configuration`] from any error.
    pub fn configuration(error: impl std::fmt::Display) -> Self {
        Self::Configuration(error.to_string())
    }

    /// A [`Stop::Failure`] from any error.
    pub fn failure(error: impl std::fmt::Display) -> Self {
        Self::Failure(error.to_string())
    }

    /// The exit code of this end.
    pub fn code(&self) -> u8 {
        match self {
            Self::Configuration(_) => CONFIGURATION,
            Self::Failure(_) => FAILED,
            Self::Preempted { .. } => PREEMPTED,
            Self::Elsewhere { code, .. } => *code,
        }
    }

    /// Says why, unless another rank does, and gives the code.
    pub fn report(&self, program: &str, rank: usize) -> ExitCode {
        match self {
            Self::Elsewhere { .. } => {}
            Self::Preempted { .. } if rank == 0 => eprintln!("{program}: {self}"),
            Self::Preempted { .. } => {}
            Self::Configuration(_) | Self::Failure(_) => {
                // What is wrong may quote a file.
                eprintln!("{program}: error: {}", one_line(&self.to_string()));
            }
        }
        ExitCode::from(self.code())
    }
}

/// Set once SIGTERM or SIGUSR1 has come to this process.
#[derive(Clone, Default)]
pub struct Preemption(Arc<AtomicBool>);

impl Preemption {
    /// From now on the two signals are noted instead of ending the process.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn watch() -> std::io::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGUSR1] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Self(flag))
    }

    /// True once a signal has come.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
