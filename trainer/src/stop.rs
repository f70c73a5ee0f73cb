//! How the program ends: exit codes, the errors behind them, and the signals that end a run early.

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use arinar_collective::{CollectiveError, JobError};
use arinar_model::text::one_line;
use arinar_protocol::{Beat, Phase};
use signal_hook::{
    consts::{SIGTERM, SIGUSR1},
    iterator::Signals,
};

use crate::{heartbeat, vitals::Vitals};

pub use arinar_protocol::exit_code::{CONFIGURATION, DONE, FAILED, PREEMPTED};

/// Why a rank ends early.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The user must change something; exit code 78.
    #[error("{0}")]
    Configuration(String),
    /// Anything else; exit code 1.
    #[error("{0}")]
    Failure(String),
    /// NCCL or CUDA reports an error: other ranks may wait for this one within NCCL, where nothing reaches them. The
    /// process ends at once ([`Stop::end_at_once`]), whereupon mpirun ends theirs; exit code 1.
    #[error("{0}")]
    Broken(String),
    /// A signal asked for it and a checkpoint is saved; exit code 75.
    #[error("stopped by a signal after saving step {step}; start again to go on")]
    Preempted {
        /// The saved step.
        step: u64,
    },
    /// A signal asked for it before the first step, so that there is nothing to save; exit code 75.
    #[error("stopped by a signal before the first step, so that nothing is lost; start again to go on")]
    NotBegun,
    /// Another rank ends the run and says why; this one only ends with the same code.
    #[error("stopped because of rank {rank}")]
    Elsewhere {
        /// The rank that tells.
        rank: usize,
        /// The code all ranks end with.
        code: u8,
    },
}

impl JobError for Stop {
    fn exit_code(&self) -> u8 {
        self.code()
    }

    fn other_rank(rank: usize, exit_code: u8) -> Self {
        Self::Elsewhere { rank, code: exit_code }
    }
}

impl From<CollectiveError> for Stop {
    fn from(error: CollectiveError) -> Self {
        match error {
            CollectiveError::Nccl { .. } | CollectiveError::Cuda(_) => Self::Broken(error.to_string()),
            CollectiveError::OtherRank { rank, exit_code } => Self::Elsewhere { rank, code: exit_code },
            error if error.exit_code() == CONFIGURATION => Self::configuration(error),
            error => Self::failure(error),
        }
    }
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
            Self::Failure(_) | Self::Broken(_) => FAILED,
            Self::Preempted { .. } | Self::NotBegun => PREEMPTED,
            Self::Elsewhere { code, .. } => *code,
        }
    }

    /// Says why, unless another rank does, and gives the code.
    pub fn report(&self, program: &str, rank: usize) -> ExitCode {
        let reason = self.reason(rank);
        match (&reason, self) {
            (None, _) => {}
            (Some(reason), Self::Configuration(_) | Self::Failure(_) | Self::Broken(_)) => {
                eprintln!("{program}: error: {reason}");
            }
            (Some(reason), _) => eprintln!("{program}: {reason}"),
        }
        heartbeat::farewell(self.code(), reason);
        ExitCode::from(self.code())
    }

    /// As [`Stop::report`]; then the process ends, whatever its threads are waiting for.
    pub fn end_at_once(&self, program: &str, rank: usize) -> ! {
        self.report(program, rank);
        at_once(self.code())
    }

    /// Why, in one line, if this rank is the one that tells.
    fn reason(&self, rank: usize) -> Option<String> {
        match self {
            Self::Elsewhere { .. } => None,
            Self::Preempted { .. } | Self::NotBegun => (rank == 0).then(|| self.to_string()),
            // What is wrong may quote a file.
            Self::Configuration(_) | Self::Failure(_) | Self::Broken(_) => Some(one_line(&self.to_string())),
        }
    }
}

/// How libtorch, CUDA and C++ say that memory is used up, the last where there is not even enough to say so.
const OUT_OF_MEMORY: [&str; 5] =
    ["can't allocate memory", "out of memory", "bad_alloc", "bad alloc", "<error computing error::what()>"];

/// Whether an error's text says that memory is used up.
pub fn is_out_of_memory(told: &str) -> bool {
    let lower = told.to_lowercase();
    OUT_OF_MEMORY.iter().any(|words| lower.contains(words))
}

/// One line for a panic. libtorch's own message is in its first line; most of the rest are addresses.
pub fn panic_reason(rank: usize, beat: &Beat, told: &str, place: Option<&str>) -> String {
    let (step, phase) = (beat.step + 1, beat.phase.name().replace('_', " "));
    let where_ = format!("rank {rank} in step {step} ({phase})");
    if is_out_of_memory(told) {
        let held = indicatif::DecimalBytes(beat.resident_bytes);
        return format!(
            "{where_} is out of memory while it holds {held}; lower batch.micro (the global batch stays, micro-batches \
             are accumulated), or start fewer ranks on this machine"
        );
    }
    let told = one_line(told.lines().next().unwrap_or(told));
    format!("{where_} ended unexpectedly at {}: {told}; this is a bug: please report it", place.unwrap_or("?"))
}

/// Ends the process without running anything of it: other threads may hang in libtorch or MPI.
pub fn at_once(code: u8) -> ! {
    // SAFETY: _exit has no preconditions; what the process leaves unfinished is what kill -9 would.
    unsafe { libc::_exit(code.into()) }
}

/// How long the start of a run may go on after a signal. It ends in order if it comes to its end before.
const START_UP_GRACE: Duration = Duration::from_secs(5);

/// Knows whether SIGTERM or SIGUSR1 has come to this process, and when.
#[derive(Clone, Debug, Default)]
pub struct Preemption(Arc<OnceLock<Instant>>);

impl Preemption {
    /// From now on the two signals are noted instead of ending the process. Before the first step there is nothing to
    /// save: a start that does not come to its end soon (it may be downloading, or waiting for others) is broken off.
    ///
    /// # Errors
    /// When the system refuses the handlers or the thread.
    pub fn watch(vitals: Arc<Vitals>) -> std::io::Result<Self> {
        let preemption = Self::default();
        let mut signals = Signals::new([SIGTERM, SIGUSR1])?;
        let noted = preemption.clone();
        let watch = move || {
            for _ in signals.forever() {
                if noted.0.set(Instant::now()).is_ok() {
                    break_off_start(&vitals);
                }
            }
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
        Ok(preemption)
    }

    /// True once a signal has come.
    pub fn requested(&self) -> bool {
        self.0.get().is_some()
    }
}

fn break_off_start(vitals: &Vitals) {
    let began = Instant::now();
    while vitals.ledger.read().phase == Phase::StartUp {
        if began.elapsed() >= START_UP_GRACE {
            let reason = Stop::NotBegun.to_string();
            eprintln!("arinar-trainer: {reason}");
            heartbeat::farewell(PREEMPTED, Some(reason));
            at_once(PREEMPTED);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
