//! Work that may run out of memory without being the end of the program.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use crate::exit::{Stop, is_out_of_memory};

thread_local! {
    /// Set while this thread is at such work.
    static ATTEMPTING: Cell<bool> = const { Cell::new(false) };
}

/// True where a panic with this message is to unwind, because it says that memory is used up, and because
/// somebody is prepared for that. For the hook that ends the program on any other.
pub fn is_forgiven(told: &str) -> bool {
    ATTEMPTING.get() && is_out_of_memory(told)
}

/// Does it; `None` where memory ran out. Whatever `task` held by then is freed.
///
/// # Errors
/// Those of `task`.
pub(super) fn attempt<T>(task: impl FnOnce() -> Result<T, Stop>) -> Result<Option<T>, Stop> {
    let before = ATTEMPTING.replace(true);
    // What it leaves half done is dropped, or written anew before anybody reads it.
    let done = catch_unwind(AssertUnwindSafe(task));
    ATTEMPTING.set(before);
    match done {
        Ok(Ok(done)) => Ok(Some(done)),
        Ok(Err(Stop::Failure(told))) if is_out_of_memory(&told) => Ok(None),
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
    fn only_the_lack_of_memory_is_forgiven_and_only_then() {
        assert_eq!(attempt(|| Ok(1)).unwrap(), Some(1));
        let attempted = attempt(|| -> Result<(), Stop> {
            assert!(is_forgiven("CUDA out of memory. Tried to allocate 2 GiB") && !is_forgiven("a bug"));
            panic!("DefaultCPUAllocator: can't allocate memory: you tried to allocate {} bytes", 1_u64 << 40)
        });
        assert_eq!(attempted.unwrap(), None);
        assert!(!is_forgiven("CUDA out of memory"));
        let failed = attempt(|| Err::<(), _>(Stop::failure("CUDA out of memory while backward")));
        assert_eq!(failed.unwrap(), None);
        assert!(matches!(attempt(|| Err::<(), _>(Stop::failure("a full disk"))), Err(Stop::Failure(_))));
        let bug = catch_unwind(|| attempt(|| -> Result<(), Stop> { panic!("a bug") }));
        assert_eq!(message(bug.unwrap_err().as_ref()), "a bug");
    }
}
