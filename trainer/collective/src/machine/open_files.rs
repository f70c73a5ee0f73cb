//! The limit on open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Number of files that a program of ARINAR opens at the same time: libraries, sockets, shared memory, event files and
/// checkpoints. The shards of a dataset are not among them, because they are closed once they are mapped into memory.
pub const NEEDED: u64 = 128;

/// Raises the soft limit, usually 1,024, to the hard one. Call it at the beginning of `main`.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If the system refuses, opening a file will report the error.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Checks that this process may open as many files as it needs. Returns the limit; `None` if there is none.
///
/// # Errors
/// Returns a message with the fix if the limit is too low.
pub fn check_limit() -> Result<Option<u64>, String> {
    let limit = getrlimit(Resource::Nofile).maximum;
    match limit {
        Some(limit) if limit < NEEDED => {
            Err(format!("the limit of open files is {limit}, {NEEDED} are needed; raise it (ulimit -Hn {NEEDED})"))
        }
        limit => Ok(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum;
        raise_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
        assert_eq!(check_limit().ok(), hard.is_none_or(|hard| hard >= NEEDED).then_some(hard));
    }
}
