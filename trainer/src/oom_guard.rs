//! Work that may run out of memory without ending the program.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use crate::stop::Stop;

/// Error messages of libtorch, CUDA and C++ for exhausted memory. The last one appears if there is not even enough memory for
/// the message.
const OUT_OF_MEMORY: [&str; 5] =
    ["can't allocate memory", "out of memory", "bad_alloc", "bad alloc", "<error computing error::what()>"];

thread_local! {
    /// True while this thread runs guarded work.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Returns true if an error message means that memory is exhausted.
pub(crate) fn is_out_of_memory(message: &str) -> bool {
    let lower = message.to_lowercase();
    OUT_OF_MEMORY.iter().any(|words| lower.contains(words))
}

/// Returns true if a panic with this message must unwind because it means that memory is exhausted during guarded work. The
/// panic hook ends the program on any other panic.
pub(crate) fn expects_oom(message: &str) -> bool {
    GUARDED.get() && is_out_of_memory(message)
}

/// Runs `work` and returns its result, or `None` if memory is exhausted. Everything that `work` has allocated by then is
/// freed.
///
/// # Errors
/// Returns any other error of `work`.
pub(crate) fn guard<T>(work: impl FnOnce() -> Result<T, Stop>) -> Result<Option<T>, Stop> {
    let before = GUARDED.replace(true);
    // State that `work` leaves inconsistent is dropped, or overwritten before it is read.
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    match result {
        Ok(Ok(value)) => Ok(Some(value)),
        Ok(Err(Stop::Failure(error))) if is_out_of_memory(&error.to_string()) => Ok(None),
        Ok(Err(stop)) => Err(stop),
        Err(panic) if is_out_of_memory(message(panic.as_ref())) => Ok(None),
        Err(panic) => resume_unwind(panic),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_exhausted_memory_is_caught_and_only_during_guarded_work() {
        assert_eq!(guard(|| Ok(1)).unwrap(), Some(1));
        let result = guard(|| -> Result<(), Stop> {
            assert!(expects_oom("CUDA out of memory. Tried to allocate 2 GiB") && !expects_oom("a bug"));
            panic!("DefaultCPUAllocator: can't allocate memory: you tried to allocate {} bytes", 1_u64 << 40)
        });
        assert_eq!(result.unwrap(), None);
        assert!(!expects_oom("CUDA out of memory"));
        let failed = guard(|| Err::<(), _>(Stop::failure("CUDA out of memory while backward")));
        assert_eq!(failed.unwrap(), None);
        assert!(matches!(guard(|| Err::<(), _>(Stop::failure("a full disk"))), Err(Stop::Failure(_))));
        let bug = catch_unwind(|| guard(|| -> Result<(), Stop> { panic!("a bug") }));
        assert_eq!(message(bug.unwrap_err().as_ref()), "a bug");
    }
}
