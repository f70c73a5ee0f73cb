//! Integration tests of the trainer that run the real programs.

mod check;
mod check_and_run;
mod config;
mod faults;
mod heartbeat;
mod import_export;
mod nccl;
mod output_folders;
mod overrides;
mod ownership;
mod plan;
mod precision;
mod ranks;
mod remote_checkpoints;
mod resume;
