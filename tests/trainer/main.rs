//! Integration tests of the trainer that run the real programs.

mod check;
mod check_and_run;
mod config;
mod faults;
mod heartbeat;
mod import_export;
mod locks;
mod nccl;
mod open_files;
mod output;
mod output_folders;
mod overrides;
mod ownership;
mod places;
mod plan;
mod precision;
mod ranks;
mod refusals;
mod remote_checkpoints;
mod resume;
mod resume_from;
