//! The signals that ask the launcher to end.

use std::{fmt, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A request to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Ctrl-C.
    Int,
    /// `kill`, Kubernetes, or a time limit.
    Term,
    /// Slurm's `--signal`.
    Usr1,
    /// The terminal was closed.
    Hup,
}

impl fmt::Display for Interrupt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Int => "SIGINT",
            Self::Term => "SIGTERM",
            Self::Usr1 => "SIGUSR1",
            Self::Hup => "SIGHUP",
        })
    }
}

/// Hears all of them.
#[derive(Debug)]
pub struct Interrupts {
    int: Signal,
    term: Signal,
    usr1: Signal,
    hup: Option<Signal>,
}

impl Interrupts {
    /// From now on they do not end the process.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub fn watch() -> io::Result<Self> {
        // nohup has it ignored, and means it.
        let hup = if is_ignored(SignalKind::hangup()) { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            usr1: signal(SignalKind::user_defined1())?,
            hup,
        })
    }

    /// The next one. Waiting can be given up and taken up again.
    pub async fn next(&mut self) -> Interrupt {
        let hup = async {
            match &mut self.hup {
                Some(hup) => hup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.int.recv() => Interrupt::Int,
            _ = self.term.recv() => Interrupt::Term,
            _ = self.usr1.recv() => Interrupt::Usr1,
            _ = hup => Interrupt::Hup,
        }
    }
}

fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}

#[cfg(test)]
impl Interrupts {
    /// For tests: hears none of those that end a process, so that the test still ends by them.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub fn none() -> io::Result<Self> {
        let harmless = || signal(SignalKind::window_change());
        Ok(Self { int: harmless()?, term: harmless()?, usr1: harmless()?, hup: None })
    }
}
