//! Integration tests of the trainer that run the real programs.

mod check;
mod config;
mod faults;
mod heartbeat;
mod import_export;
mod nccl;
mod open_files;
mod ownership;
mod plan;
mod precision;
mod ranks;
mod remote_checkpoints;
mod resume;
mod resume_from;
