//! Exit codes of the launcher, of its ranks and of the data tools.

/// The run is complete.
pub const DONE: u8 = 0;
/// An error that a different configuration would not fix. The launcher may restart the job.
pub const FAILED: u8 = 1;
/// A signal ended the run; starting it again resumes it (the "requeue me" convention of batch systems).
pub const PREEMPTED: u8 = 75;
/// The command line, the configuration or the setup of the machine must be changed first.
pub const CONFIGURATION: u8 = 78;
