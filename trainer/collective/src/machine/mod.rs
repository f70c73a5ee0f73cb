//! The machine that a rank runs on: cores, memory, open files, and thread priorities.

pub mod affinity;
pub mod allocator;
pub mod memory;
pub mod open_files;
pub mod priority;
mod topology;
