//! Training and sampling of ARINAR models: the training loop and everything that it needs on one rank.
//!
//! - [`Startup`] builds a [`Training`], whose [`run`](Training::run) is the training loop (`train.rs`, `step.rs`).
//! - `parameters`, `optimizer`, `ema` and `clip` update the weights in flat memory.
//! - `config` is the configuration of a run, `logs` its output.
//! - `planning` has `--check` and `--plan`, `sample` the parts of `arinar-sample` other than the model.
//!
//! The model is in `arinar-model`, batches come from `arinar-data`, collective operations from `arinar-collective`, and
//! checkpoints from `arinar-checkpoint`. Begin with `train.rs`.
//!
//! ```
//! use arinar_trainer::config;
//!
//! // Read a configuration, with an override as on the command line.
//! let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/arinar_b.yaml");
//! let config = config::load(file, &["optim.epochs=2".to_owned()])?;
//! assert_eq!(config.optim.epochs, 2.0);
//! # Ok::<(), config::ConfigError>(())
//! ```

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod banner;
mod batch_source;
pub mod clip;
pub mod config;
pub mod ema;
mod export;
mod folders;
pub mod heartbeat;
mod import;
mod logs;
mod model_state;
mod oom_guard;
pub mod optimizer;
mod options;
pub mod panic_hook;
pub mod parameters;
mod planning;
mod preemption;
pub mod process_exit;
mod rank_context;
mod run_length;
pub mod sample;
mod sample_log;
mod seeds;
pub mod shutdown;
mod startup;
mod step;
pub mod step_consensus;
mod stop;
mod time_accounting;
mod train;
mod version;
mod vitals;

pub use config::LogFormat;
pub use export::{Export, Weights};
pub use options::Options;
pub use planning::{
    check::{check, check_collectives},
    forecast::{MEMORY_TOLERANCE, plan},
};
pub use preemption::Preemption;
pub use rank_context::RankContext;
pub use startup::{Startup, agree_on_config};
pub use stop::Stop;
pub use train::Training;
pub use vitals::Vitals;
