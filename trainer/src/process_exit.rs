//! Exiting without cleanup.

/// Exits the process without running destructors or exit handlers, because other threads may be blocked in libtorch or MPI.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: _exit has no preconditions. What the process leaves unfinished is the same as after SIGKILL.
    unsafe { libc::_exit(code.into()) }
}
