//! What becomes of freed memory.
//!
//! A training step allocates and frees the same large tensors again and again. With glibc's defaults
//! many of them are fresh mappings, so each step pays for zeroing and faulting in all their pages:
//! about half of a CPU step. Kept in the process, freed memory is used again. While a model is set up
//! the opposite is right: its first tensors are freed for good once the weights lie in flat memory.

/// Gives every large block back to the system as soon as it is freed. Call it first in `main`, before
/// a large model is built. On other C libraries than glibc it does nothing.
pub fn release_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: i32 = 256 << 10;
        // SAFETY: mallopt only sets integers of the allocator, under its lock.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}

/// Tells glibc to serve large blocks from the heap and not to give memory back. Call it before the
/// first step. On other C libraries than glibc it does nothing.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        const NEVER: i32 = -1;
        const GROWTH: i32 = 64 << 20;
        // SAFETY: mallopt only sets integers of the allocator, under its lock.
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
