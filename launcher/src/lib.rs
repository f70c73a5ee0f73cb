//! Starts, watches and restarts training jobs.
//!
//! [`supervise`] is the launcher from start to end; a [`job`] is one start of mpirun. What can be decided without a
//! process or a clock is: [`hang`] (who is waited for), [`policy`] (restart or not), [`plan`] (how many ranks),
//! [`command`] (what mpirun is told).

pub mod arguments;
pub mod command;
pub mod exit;
pub mod funnel;
pub mod goodput;
pub mod hang;
pub mod hosts;
pub mod interrupts;
pub mod job;
pub mod lock;
pub mod output;
pub mod page;
pub mod plan;
pub mod policy;
pub mod processes;
pub mod programs;
pub mod ranks;
pub mod reason;
pub mod server;
pub mod session;
pub mod slots;
pub mod status;
pub mod supervise;
pub mod tags;
