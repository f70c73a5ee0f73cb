//! Threads whose work may take long, but must not slow a step that all ranks wait for.

/// The calling thread, and those it starts from now on, run only where nothing else wants to. Does nothing where the
/// system knows no priorities of threads.
pub fn give_way() {
    #[cfg(target_os = "linux")]
    {
        const LOWEST: libc::c_int = 19;
        // SAFETY: sets the priority of the calling thread (0), which on Linux the threads that it starts inherit; if it
        // fails, nothing changes.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST) };
    }
}
