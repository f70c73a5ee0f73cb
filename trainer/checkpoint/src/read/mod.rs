//! Finding, downloading, verifying and reading checkpoints.

pub(crate) mod download;
pub(crate) mod found;
pub(crate) mod load;
pub(crate) mod probe;
pub(crate) mod resolve;
pub(crate) mod restore;
mod resume_place;
pub(crate) mod state_file;
