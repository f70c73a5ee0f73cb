//! Integration tests of the launcher that run the real programs.

mod chaos;
mod command;
mod hang;
mod hosts;
mod job;
mod kills;
mod nodes;
mod output;
mod preemption;
mod trainer;
mod trouble;
