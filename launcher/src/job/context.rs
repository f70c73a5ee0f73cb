//! The environment of a job.

use std::{path::Path, time::Duration};

use tokio::sync::mpsc;

use crate::{
    arguments::Arguments, history::RunHistory, output::Output, rank_message::IncomingMessage,
    shutdown_signals::ShutdownSignals, status::SharedStatus,
};

/// The parts of the launcher that a job uses.
pub(crate) struct JobContext<'a> {
    /// The command line.
    pub(crate) arguments: &'a Arguments,
    /// The output.
    pub(crate) output: &'a Output,
    /// Receiver of messages from ranks.
    pub(crate) messages: &'a mut mpsc::Receiver<IncomingMessage>,
    /// Receiver of shutdown signals.
    pub(crate) signals: &'a mut ShutdownSignals,
    /// The history of the run, to which the job adds.
    pub(crate) history: &'a mut RunHistory,
    /// The published status.
    pub(crate) status: &'a SharedStatus,
    /// Time for which a rank retries store operations.
    pub(crate) store_patience: Duration,
    /// Path of the file that records the mpirun of the job.
    pub(crate) session_record: &'a Path,
}
