//! The hosts of a job: the host file, reachability, and the addresses under which ranks reach the launcher.

mod addresses;
mod host;
mod hostfile;
mod probe;

pub(crate) use addresses::own_addresses;
pub(crate) use host::{Host, allocate, total_slots};
pub(crate) use hostfile::{InMemoryFile, lines, names_user, read_hostfile, write_hostfile};
pub(crate) use probe::{Unreachable, probe};
