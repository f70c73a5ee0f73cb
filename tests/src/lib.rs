//! Helpers shared by the test suites.

pub mod golden;
pub mod gpu_stand_in;
pub mod mpi;
pub mod reference;
pub mod s3;
pub mod support;

use std::path::PathBuf;

/// Returns the path of a program in the Python environment that `ops/bootstrap.sh --tests` creates.
pub fn test_program(name: &str) -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = variable("ARINAR_HOME").unwrap_or_else(|| {
        let cache = variable("XDG_CACHE_HOME").unwrap_or_else(|| variable("HOME").unwrap_or_default().join(".cache"));
        cache.join("arinar")
    });
    home.join("test-venv/bin").join(name)
}
