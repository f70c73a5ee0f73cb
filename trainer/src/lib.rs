//! The training loop of ARINAR and all that needs ranks: flat parameters, collectives, the
//! optimizer, checkpoints and logs.

pub mod affinity;
pub mod allocator;
pub mod clip;
pub mod collective;
// pub mod config;
pub mod ema;
pub mod exit;
mod host;
pub mod optimizer;
pub mod parameters;
pub mod tensorboard;
