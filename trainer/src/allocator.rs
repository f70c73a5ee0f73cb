//! Keeps freed memory in the process.
//!
//! A training step allocates and frees the same large tensors again and again. With glibc's
//! defaults every one above 32 MiB is a fresh mapping, so each step pays for zeroing and faulting
//! in all its pages: about half of a CPU step. With these settings freed memory is used again.

/// Tells glibc to serve large blocks from the heap and not to give memory back. Call it first in
/// `main`, before anything large is allocated. On other C libraries it does nothing.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        const NEVER: i32 = -1;
        const GROWTH: i32 = 64 << 20;
        // SAFETY: mallopt only sets integers of the allocator; no other thread exists yet.
        unsafe {
            // No block is a mapping of its own.
            libc::mallopt(libc::M_MMAP_MAX, 0);
            // The heap's top is never given back.
            libc::mallopt(libc::M_TRIM_THRESHOLD, NEVER);
            // The heap grows in steps worth a system call.
            libc::mallopt(libc::M_TOP_PAD, GROWTH);
        }
    }
}
