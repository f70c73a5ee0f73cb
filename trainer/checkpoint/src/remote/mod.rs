//! Checkpoints of a run in an object store: the spool, and uploading from it.

pub(crate) mod backoff;
pub(crate) mod outage;
pub(crate) mod spool;
pub(crate) mod upload_job;
pub(crate) mod upload_order;
pub(crate) mod upload_queue;
pub(crate) mod uploader;
