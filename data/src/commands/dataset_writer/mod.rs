//! Writing of a dataset whose records come from encoded pictures or converted files.
//!
//! Rank r of w writes the shards r, r + w, r + 2w and so on. Rank 0 collects the results of all ranks and writes the
//! manifest, which makes the dataset exist. Shards of an interrupted run are kept if they are intact and their pictures
//! have not changed.

mod agree;
pub(crate) mod encoder;
pub(crate) mod error;
mod existing;
mod finish;
pub(crate) mod job;
pub(crate) mod open_shard;
mod overwrite;
mod ownership;
pub(crate) mod picture_list;
mod plan;
pub(crate) mod settings;
mod share;
mod stored_shard;
pub(crate) mod write;
