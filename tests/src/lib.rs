//! What the test suites share.

pub mod golden;
pub mod s3;
