//! The call log, `ARINAR_STAND_IN_LOG`: one line of JSON for each call, in the order in which a rank made them.
//!
//! ```text
//! {"rank":0,"event":"init","world":2}
//! {"rank":0,"event":"call","call":1,"operation":"all_reduce","elements":1048576,"type":"float32","reduction":"sum",
//!  "root":null,"stream":4096,"in_place":true}                                                          (on one line)
//! {"rank":0,"event":"record","mark":16,"stream":0}
//! {"rank":0,"event":"wait","mark":16,"stream":4096}
//! {"rank":0,"event":"error","result":6}
//! {"rank":0,"event":"abort"}
//! {"rank":0,"event":"destroy"}
//! ```
//!
//! An init is logged when all ranks have joined, and an error when the communicator gets it. Record and wait refer to
//! CUDA events; their rank is that of Open MPI, since CUDA has no ranks.

use std::{fs::OpenOptions, io::Write};

use crate::environment::settings;

/// Logs a call with a CUDA event.
pub(crate) fn log_event(name: &str, mark: usize, stream: usize) {
    let rank = std::env::var("OMPI_COMM_WORLD_RANK").ok().and_then(|rank| rank.parse().ok()).unwrap_or(0);
    log(rank, &format!("\"event\":\"{name}\",\"mark\":{mark},\"stream\":{stream}"));
}

/// Appends a line with the rank and `fields` to the log, if there is one.
pub(crate) fn log(rank: usize, fields: &str) {
    let Some(path) = &settings().log else { return };
    // Use one write, so that the lines of several processes do not mix.
    let line = format!("{{\"rank\":{rank},{fields}}}\n");
    let file = OpenOptions::new().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("NCCL stand-in: {}: {error}", path.display());
    }
}
