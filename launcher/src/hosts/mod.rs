//! The hosts of a job: the host file, reachability, and the addresses under which ranks reach the launcher.

mod addresses;
mod hostfile;
mod probe;

pub(crate) use addresses::own_addresses;
pub(crate) use hostfile::{
    Host, InMemoryFile, allocate, lines, names_user, read_hostfile, total_slots, write_hostfile,
};
pub(crate) use probe::{Unreachable, probe};
