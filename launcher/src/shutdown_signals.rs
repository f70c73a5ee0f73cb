//! The signals that ask the launcher to shut down.

use std::{fmt, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that requests a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShutdownSignal {
    /// Ctrl-C.
    Int,
    /// Sent by `kill`, by Kubernetes and at time limits.
    Term,
    /// Sent by Slurm's `--signal`.
    Usr1,
    /// The terminal was closed.
    Hup,
}

impl fmt::Display for ShutdownSignal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Int => "SIGINT",
            Self::Term => "SIGTERM",
            Self::Usr1 => "SIGUSR1",
            Self::Hup => "SIGHUP",
        })
    }
}

/// A receiver of shutdown signals.
#[derive(Debug)]
pub(crate) struct ShutdownSignals {
    int: Signal,
    term: Signal,
    usr1: Signal,
    hup: Option<Signal>,
}

impl ShutdownSignals {
    /// Installs handlers, so that these signals no longer end the process.
    ///
    /// # Errors
    /// The system rejects a handler.
    pub(crate) fn install() -> io::Result<Self> {
        // nohup ignores SIGHUP on purpose.
        let hup = if is_ignored(SignalKind::hangup()) { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            usr1: signal(SignalKind::user_defined1())?,
            hup,
        })
    }

    /// Waits for the next signal. The method is cancel safe.
    pub(crate) async fn next(&mut self) -> ShutdownSignal {
        let hup = async {
            match &mut self.hup {
                Some(hup) => hup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.int.recv() => ShutdownSignal::Int,
            _ = self.term.recv() => ShutdownSignal::Term,
            _ = self.usr1.recv() => ShutdownSignal::Usr1,
            _ = hup => ShutdownSignal::Hup,
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
impl ShutdownSignals {
    /// Returns a receiver that never receives the signals that end a process, so that they still end a test.
    ///
    /// # Errors
    /// The system rejects a handler.
    pub(crate) fn none() -> io::Result<Self> {
        let harmless = || signal(SignalKind::window_change());
        Ok(Self { int: harmless()?, term: harmless()?, usr1: harmless()?, hup: None })
    }
}
