//! The machine that a rank runs on: cores, memory, and thread priorities.

pub mod affinity;
pub mod allocator;
pub mod memory;
pub mod priority;
mod topology;
