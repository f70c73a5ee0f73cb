//! Finding, downloading, verifying and reading checkpoints.

pub(crate) mod download;
pub(crate) mod found;
pub(crate) mod load;
mod place;
pub(crate) mod probe;
pub(crate) mod resolve;
pub(crate) mod restore;
pub(crate) mod state_file;
