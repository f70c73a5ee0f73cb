//! Writing checkpoints in the background.

pub(crate) mod publisher;
pub(crate) mod snapshot;
pub(crate) mod writer;
