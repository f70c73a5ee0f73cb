//! Priority of background threads, which must not slow a step that all ranks wait for.

/// Gives the calling thread, and the threads it starts from now on, the lowest priority. Does nothing on systems without
/// thread priorities.
pub fn lower_thread_priority() {
    #[cfg(target_os = "linux")]
    {
        const LOWEST: libc::c_int = 19;
        // SAFETY: sets the priority of the calling thread (0), which on Linux the threads that it starts inherit. If the
        // call fails, nothing changes.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST) };
    }
}
