//! What the test suites share: small datasets, runs of the real programs, and servers.

// Names and signatures say what these helpers do; their users are the tests alone.
// A helper that fails must fail the test.
#![allow(missing_docs, clippy::unwrap_used, clippy::new_without_default)]

pub mod checkpoint;
pub mod data;
pub mod hostile;
pub mod launcher;
pub mod store;
pub mod trainer;
pub mod trial;
