//! Builds the stand-in for libcuda and libnccl (`tests/gpu_stand_in`) and configures it for the programs of a test.
//!
//! Everything here panics with a message on an error, since it is only used in tests.

use crate::programs::program_folder;
use std::{ffi::OsString, os::unix::fs::symlink, path::PathBuf, process::Command};

use serde::Deserialize;
use tempfile::TempDir;

/// File names under which programs load the two libraries.
const NAMES: [&str; 4] = ["libcuda.so", "libcuda.so.1", "libnccl.so", "libnccl.so.2"];

/// A temporary folder with the libraries and their log of one job.
#[derive(Debug)]
pub struct GpuStandIn {
    folder: TempDir,
}

/// A line of the log; see `tests/gpu_stand_in/src/nccl/call_log.rs`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Entry {
    /// Rank that wrote the line.
    pub rank: usize,
    /// The logged event.
    #[serde(flatten)]
    pub event: Event,
}

/// An event that the stand-in logs.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// All ranks have joined the communicator.
    Init {
        /// Number of ranks.
        world: usize,
    },
    /// A collective was called.
    Call(Call),
    /// A CUDA event was recorded on a stream.
    Record(Mark),
    /// A stream waits for a CUDA event.
    Wait(Mark),
    /// The communicator has failed.
    Error {
        /// The value of `ncclResult_t`.
        result: u32,
    },
    /// The communicator was aborted.
    Abort,
    /// The communicator was destroyed.
    Destroy,
}

/// A CUDA event and a stream.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Mark {
    /// The event's handle.
    pub mark: u64,
    /// The stream's handle; 0 is the default stream.
    pub stream: u64,
}

/// A call of a collective.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Call {
    /// Number of the call within its rank, from 1.
    pub call: u64,
    /// `all_reduce`, `broadcast`, ...
    pub operation: String,
    /// Number of elements in one rank's part.
    pub elements: usize,
    /// `float32`, `uint8`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// `sum`, `max`, ..., if the collective reduces.
    pub reduction: Option<String>,
    /// Root rank, if the collective has one.
    pub root: Option<usize>,
    /// The stream's handle; 0 is the default stream.
    pub stream: u64,
    /// Whether input and output are the same memory.
    pub in_place: bool,
}

impl GpuStandIn {
    /// Builds the libraries if their sources have changed, and creates a folder with links to them.
    #[expect(clippy::new_without_default, reason = "it builds a library and creates a folder")]
    pub fn new() -> Self {
        let library = program_folder().join("libarinar_gpu_stand_in.so");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let libraries = folder.path().join("libraries");
        for path in [&libraries, &folder.path().join("once")] {
            std::fs::create_dir(path).expect("a folder");
        }
        for name in NAMES {
            symlink(&library, libraries.join(name)).expect("a link to the library");
        }
        Self { folder }
    }

    /// Returns the folder that must be the first in `LD_LIBRARY_PATH`.
    pub fn libraries(&self) -> PathBuf {
        self.folder.path().join("libraries")
    }

    /// Returns the environment variables with which a process finds the libraries and their log. `mpirun` passes them
    /// to the ranks on this host.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut path = self.libraries().into_os_string();
        if let Some(others) = std::env::var_os("LD_LIBRARY_PATH") {
            path.push(":");
            path.push(others);
        }
        vec![("LD_LIBRARY_PATH", path), ("ARINAR_STAND_IN_LOG", self.log().into())]
    }

    /// Adds the variables of [`Self::environment`] to a command.
    pub fn apply(&self, command: &mut Command) {
        command.envs(self.environment());
    }

    /// Returns the environment variables that inject faults: sentences such as `rank 1 call 5 hang`, separated by
    /// semicolons; see `tests/gpu_stand_in/src/nccl/faults.rs`. Each occurs only once, so a restarted job gets past it.
    pub fn faults(&self, sentences: &str) -> Vec<(&'static str, OsString)> {
        let once = self.folder.path().join("once");
        vec![("ARINAR_STAND_IN_FAULTS", sentences.into()), ("ARINAR_STAND_IN_FAULTS_ONCE", once.into())]
    }

    /// Returns the path of the log.
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("calls.jsonl")
    }

    /// Returns all log entries so far. The entries of one rank are in chronological order.
    pub fn entries(&self) -> Vec<Entry> {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("stand-in log {line:?}: {error}"));
        text.lines().map(parse).collect()
    }

    /// Returns the collectives that a rank has called.
    pub fn calls(&self, rank: usize) -> Vec<Call> {
        let calls = self.entries().into_iter().filter(|entry| entry.rank == rank);
        calls.filter_map(|entry| if let Event::Call(call) = entry.event { Some(call) } else { None }).collect()
    }
}
