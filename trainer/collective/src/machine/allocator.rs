//! Settings of glibc's memory allocator.
//!
//! A training step allocates and frees the same large tensors again and again. With glibc's defaults many of them are
//! fresh mappings, so each step zeroes and faults in all their pages, which is about half of the time of a CPU step. If
//! freed memory stays in the process, it is reused. While a model is being set up the opposite is better: its initial
//! tensors are not needed again once the weights are in flat memory.

/// Returns every large block to the system as soon as it is freed. Call it first in `main`, before a large model is
/// built. Does nothing with C libraries other than glibc.
pub fn release_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: i32 = 256 << 10;
        // SAFETY: mallopt only sets integers of the allocator, under its lock.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}

/// Keeps freed memory in the process for reuse. Call it before the first training step. Does nothing with C libraries
/// other than glibc.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        const NEVER: i32 = -1;
        const GROWTH: i32 = 64 << 20;
        // SAFETY: mallopt only sets integers of the allocator, under its lock.
        unsafe {
            // No block is a separate mapping.
            libc::mallopt(libc::M_MMAP_MAX, 0);
            // The top of the heap is never returned to the system.
            libc::mallopt(libc::M_TRIM_THRESHOLD, NEVER);
            // The heap grows in steps that are large enough to be worth a system call.
            libc::mallopt(libc::M_TOP_PAD, GROWTH);
        }
    }
}
