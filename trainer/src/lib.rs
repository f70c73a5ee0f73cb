//! The training loop of ARINAR and all that needs ranks: flat parameters, collectives, the
//! optimizer, checkpoints and logs. The loop itself is [`train::Training::run`].

pub mod clip;
pub mod config;
pub mod ema;
pub mod estimate;
pub mod exit;
pub mod export;
pub mod heartbeat;
pub mod import;
pub mod ledger;
pub mod log_copy;
pub mod logs;
pub mod optimizer;
pub mod parameters;
pub mod preflight;
pub mod progress;
pub mod run;
pub mod sample;
pub mod seeds;
pub mod signals;
pub mod source;
pub mod step;
pub mod tensorboard;
pub mod train;
pub mod vitals;
