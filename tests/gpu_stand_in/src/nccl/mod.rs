//! NCCL's interface between processes of one machine.
//!
//! A collective is one job on the stream it was called with. It sends pieces through shared memory (`segment.rs`),
//! where all ranks wait for each other (`exchange.rs`), and every rank reduces all of them in rank order
//! (`collective.rs`), so all get the same bits. A rank that waits looks whether the others still live.

pub mod call_log;
mod calls;
mod collective;
mod communicator;
mod datatype;
mod exchange;
pub mod faults;
mod group;
mod initialization;
mod process;
mod result;
mod segment;
mod unique_id;
