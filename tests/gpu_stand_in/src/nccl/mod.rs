//! NCCL's interface between processes of one host.
//!
//! A collective is one piece of work on the stream it was called with. It sends chunks through shared memory
//! (`segment.rs`), where all ranks wait for each other (`exchange.rs`), and every rank reduces the chunks in rank order
//! (`collective.rs`), so all results are bitwise equal. A waiting rank checks whether the others are alive.

pub(crate) mod call_log;
mod calls;
mod collective;
mod communicator;
mod datatype;
mod exchange;
pub(crate) mod faults;
mod group;
mod initialization;
mod process;
mod result;
mod segment;
mod unique_id;
