//! Helpers shared by the test suites.

pub mod golden;
pub mod gpu_stand_in;
pub mod mpi;
pub mod programs;
pub mod python_server;
pub mod reference;
pub mod s3;
pub mod support;
