//! The stand-in for libcuda and libnccl (`tests/gpu_stand_in`), ready for the programs of a test.
//!
//! Everything here panics with a sentence on what goes wrong: it serves tests alone.

use std::{
    ffi::OsString,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde::Deserialize;
use tempfile::TempDir;

/// The names under which programs look for the two libraries.
const NAMES: [&str; 4] = ["libcuda.so", "libcuda.so.1", "libnccl.so", "libnccl.so.2"];

/// A temporary folder with the libraries and with what they note about one job.
#[derive(Debug)]
pub struct GpuStandIn {
    folder: TempDir,
}

/// One line of the log; see `tests/gpu_stand_in/src/nccl/call_log.rs`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Entry {
    /// Whose line it is.
    pub rank: usize,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What the stand-in notes.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// All ranks have come.
    Init {
        /// How many there are.
        world: usize,
    },
    /// A collective was called.
    Call(Call),
    /// A CUDA event marks all that is on a stream.
    Record(Mark),
    /// A stream waits for what an event marks.
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

/// An event and a stream.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Mark {
    /// The event's handle.
    pub mark: u64,
    /// The stream's handle; 0 is the default stream.
    pub stream: u64,
}

/// A collective.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Call {
    /// Its number among those of its rank, from 1.
    pub call: u64,
    /// `all_reduce`, `broadcast`, ...
    pub operation: String,
    /// Elements of one rank's part.
    pub elements: usize,
    /// `float32`, `uint8`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// `sum`, `max`, ..., if it reduces.
    pub reduction: Option<String>,
    /// Whose data it is, if it is one rank's.
    pub root: Option<usize>,
    /// The stream's handle; 0 is the default stream.
    pub stream: u64,
    /// Input and output are the same memory.
    pub in_place: bool,
}

impl GpuStandIn {
    /// Builds the libraries if they are not as their sources are, and makes a folder with links to them.
    #[expect(clippy::new_without_default, reason = "it builds a library and makes a folder")]
    pub fn new() -> Self {
        let library = built().join("libarinar_gpu_stand_in.so");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let libraries = folder.path().join("libraries");
        for made in [&libraries, &folder.path().join("once")] {
            std::fs::create_dir(made).expect("a folder");
        }
        for name in NAMES {
            symlink(&library, libraries.join(name)).expect("a link to the library");
        }
        Self { folder }
    }

    /// The folder that has to be on `LD_LIBRARY_PATH`, before all others.
    pub fn libraries(&self) -> PathBuf {
        self.folder.path().join("libraries")
    }

    /// What a process needs to find the libraries, and a place for their log: `mpirun` hands it on to the ranks of this
    /// machine.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut path = self.libraries().into_os_string();
        if let Some(others) = std::env::var_os("LD_LIBRARY_PATH") {
            path.push(":");
            path.push(others);
        }
        vec![("LD_LIBRARY_PATH", path), ("ARINAR_STAND_IN_LOG", self.log().into())]
    }

    /// Gives a command what [`Self::environment`] says.
    pub fn apply(&self, command: &mut Command) {
        command.envs(self.environment());
    }

    /// What makes faults happen: sentences such as `rank 1 call 5 hang`, with semicolons between them; see
    /// `tests/gpu_stand_in/src/nccl/faults.rs`. Each happens once, so that a job that is started again gets past it.
    pub fn faults(&self, sentences: &str) -> Vec<(&'static str, OsString)> {
        let once = self.folder.path().join("once");
        vec![("ARINAR_STAND_IN_FAULTS", sentences.into()), ("ARINAR_STAND_IN_FAULTS_ONCE", once.into())]
    }

    /// Where calls are noted.
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("calls.jsonl")
    }

    /// What was noted so far; the entries of one rank are in the order in which they happened.
    pub fn entries(&self) -> Vec<Entry> {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("stand-in log {line:?}: {error}"));
        text.lines().map(parse).collect()
    }

    /// The collectives that a rank has called.
    pub fn calls(&self, rank: usize) -> Vec<Call> {
        let calls = self.entries().into_iter().filter(|entry| entry.rank == rank);
        calls.filter_map(|entry| if let Event::Call(call) = entry.event { Some(call) } else { None }).collect()
    }
}

/// The folder of what cargo builds, with the libraries and programs as their sources are.
pub fn built() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            // Of the whole workspace: for one package alone features differ, and all would be compiled again.
            .args(["build", "--release", "--quiet", "--workspace", "--lib", "--bins"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo");
        assert!(built.success(), "the stand-in for the GPU does not build");
        let test = std::env::current_exe().expect("the test's own path");
        test.parent().and_then(Path::parent).expect("the folder above deps").to_owned()
    })
}
