//! Fixtures shared by the test suites: small datasets, runs of the real programs, and servers.

// These helpers are only used by tests; most are documented by their names and signatures. A helper that fails must
// fail the test.
#![allow(missing_docs, clippy::unwrap_used, clippy::new_without_default)]

pub mod checkpoint;
pub mod data;
pub mod hostile;
pub mod launcher;
pub mod no_locks;
pub mod output_sinks;
pub mod store;
pub mod trainer;
pub mod trial;
