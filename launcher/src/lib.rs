//! Starts, watches and restarts training jobs under Open MPI.
//!
//! [`supervise()`] is the whole program: it asks the trainer for its configuration, chooses the ranks, starts mpirun and
//! restarts it until the run is done. Modules that decide something are pure and do no I/O: `hang` (which rank the others
//! wait for), `policy` (whether to restart), `rank_count` (how many ranks), `mpirun_command`, `exit_evidence` (why a job
//! ended). `job` is one start of mpirun; `server` receives the heartbeats of the ranks; `mpi_cleanup` and `processes` make
//! sure that nothing stays behind.
//!
//! The messages between ranks and launcher are in `arinar_protocol`. This crate neither trains nor reads checkpoints: a
//! restarted rank resumes by itself. Begin with `supervise/mod.rs`, then `job/mod.rs`.
//!
//! # Example
//!
//! A command line that cannot be used yields one line and the exit code of the process:
//!
//! ```
//! use arinar_launcher::Arguments;
//!
//! let words = ["arinar-launcher", "--config", "arinar_b.yaml", "--nproc", "none"];
//! let (message, code) = Arguments::read(words.map(Into::into)).unwrap_err();
//! assert!(message.contains("--nproc"));
//! assert_eq!(code, arinar_protocol::exit_code::CONFIGURATION);
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod arguments;
mod exit_evidence;
mod goodput;
mod hang;
mod hang_report;
mod history;
mod hosts;
mod http;
mod job;
mod job_config;
mod metrics;
mod mpi_cleanup;
mod mpirun_command;
mod open_files;
mod output;
mod policy;
mod processes;
mod programs;
mod rank_count;
mod rank_message;
mod ranks;
mod run_lock;
mod server;
mod shutdown_signals;
mod slots;
mod status;
mod step_times;
mod stop;
mod supervise;
mod tag_parser;
mod trainer_arguments;

pub use arguments::Arguments;
pub use supervise::supervise;
