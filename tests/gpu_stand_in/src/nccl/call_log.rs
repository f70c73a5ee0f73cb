//! The log of calls, `ARINAR_STAND_IN_LOG`: one line of JSON for each, in the order in which a rank made them.
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
//! An init is noted when all ranks have come, an error when the communicator gets it. Record and wait are those of CUDA
//! events; their rank is what Open MPI says, since CUDA knows of none.

use std::{fs::OpenOptions, io::Write};

use crate::environment::settings;

/// Notes what happens to a CUDA event.
pub fn note_event(what: &str, mark: usize, stream: usize) {
    let rank = std::env::var("OMPI_COMM_WORLD_RANK").ok().and_then(|rank| rank.parse().ok()).unwrap_or(0);
    note(rank, &format!("\"event\":\"{what}\",\"mark\":{mark},\"stream\":{stream}"));
}

/// Adds a line to the log, if there is one: `fields` follow the rank.
pub fn note(rank: usize, fields: &str) {
    let Some(path) = &settings().log else { return };
    // One write, so that the lines of several processes do not mix.
    let line = format!("{{\"rank\":{rank},{fields}}}\n");
    let written = OpenOptions::new().create(true).append(true).open(path);
    if let Err(error) = written.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("NCCL stand-in: {}: {error}", path.display());
    }
}
