//! The limit on open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. mpirun inherits it, and needs several files per rank.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If the system refuses, opening a file will report the error.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
