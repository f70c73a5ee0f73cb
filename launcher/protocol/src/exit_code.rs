//! Exit codes, which are the same in all programs.

/// The program has done what it was asked to do.
pub const DONE: u8 = 0;
/// The program failed for a reason that a changed configuration would not fix.
pub const FAILED: u8 = 1;
/// The run was ended by a signal and can be resumed by starting it again.
pub const PREEMPTED: u8 = 75;
/// The command line, the configuration, or what it refers to must be changed.
pub const CONFIGURATION: u8 = 78;
