//! Tests of the launcher with the real programs.

mod chaos;
mod command;
mod job;
mod kills;
mod nodes;
mod preemption;
mod trainer;
mod trouble;
