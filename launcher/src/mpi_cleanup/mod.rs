//! Removes what an mpirun leaves on this host when it is killed, kills its ranks, or loses its launcher: a folder in the
//! temporary folder, and the shared memory of its ranks.
//!
//! Other MPI jobs of the same user keep theirs in the same places. The launcher therefore records in a file which mpirun
//! it started. If the launcher is killed, the next launcher of the run removes what that mpirun left and nothing else.

mod artifacts;
mod record;
mod session;

pub(crate) use record::FILE_NAME;
pub(crate) use session::{MpiSession, remove_leftovers};

#[cfg(test)]
mod tests;
