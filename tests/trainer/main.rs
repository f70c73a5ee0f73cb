//! Integration tests of the trainer that run the real programs.

mod check;
mod config;
mod faults;
mod heartbeat;
mod import_export;
mod locks;
mod nccl;
mod output;
mod ownership;
mod places;
mod plan;
mod precision;
mod ranks;
mod refusals;
mod remote_checkpoints;
mod resume;
