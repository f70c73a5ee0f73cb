//! A run of the real binary whose folder is a bucket of a server in this process.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Lines},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use crate::s3::S3Server;

use crate::support::trainer::{Ended, Lab};

/// Where the bucket lies in the lab's folder: the server keeps objects as files.
pub const RUN: &str = "s3/runs/tiny";

/// A lab and a server.
pub struct Cloud {
    pub lab: Lab,
    pub server: S3Server,
    /// `ARINAR_STORE_PATIENCE` of the programs, in seconds. A quarter of it is the longest stall of a request, and uploads
    /// give way to everything else on the machine.
    pub patience: &'static str,
}

impl Cloud {
    pub fn new() -> Self {
        let lab = Lab::new();
        let server = S3Server::start(&lab.path("s3"));
        server.create_bucket("runs");
        Self { lab, server, patience: "40" }
    }

    /// One whose programs soon give up on a store that is out of reach.
    pub fn impatient() -> Self {
        Self { patience: "4", ..Self::new() }
    }

    /// Puts a copy of the lab's dataset into a bucket of its own, `s3://data`.
    pub fn publish_dataset(&self) {
        self.server.create_bucket("data");
        for entry in std::fs::read_dir(self.lab.path("dataset")).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, self.lab.path("s3/data").join(path.file_name().unwrap())).unwrap();
        }
    }

    pub fn command(&self, ranks: usize, overrides: &[&str]) -> Command {
        let spool = format!("checkpoint.spool_dir={}", self.lab.path("spool").display());
        let ours = ["run.dir=s3://runs/tiny", &spool];
        let mut command = self.lab.command(ranks, &[&ours, overrides].concat());
        command.envs(self.environment());
        command
    }

    pub fn environment(&self) -> Vec<(String, String)> {
        let mut variables = self.server.environment();
        variables.push(("ARINAR_STORE_PATIENCE".to_owned(), self.patience.to_owned()));
        variables
    }

    pub fn train(&self, ranks: usize, overrides: &[&str]) -> Ended {
        Ended::of(self.command(ranks, overrides).output().unwrap())
    }

    /// A run in the background; only `train.max_steps` ends it.
    pub fn start(&self, ranks: usize, overrides: &[&str]) -> Running {
        let mut command = self.command(ranks, &[&["optim.epochs=1000000"], overrides].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { child, lines, seen: Vec::new() }
    }

    /// Names of the checkpoints that are valid in the bucket.
    pub fn stored(&self) -> Vec<String> {
        self.lab.checkpoints(RUN)
    }

    /// The run's own folder in the spool.
    pub fn spool(&self) -> PathBuf {
        let mut folders = std::fs::read_dir(self.lab.path("spool")).unwrap();
        folders.next().unwrap().unwrap().path()
    }

    /// Another machine: nothing of the run is on its disk.
    pub fn new_machine(&self) {
        let _ = std::fs::remove_dir_all(self.lab.path("spool"));
        let _ = std::fs::remove_dir_all(self.lab.path("logs"));
    }

    /// Every valid checkpoint in the bucket is whole.
    pub fn check_manifests(&self) {
        for name in self.stored() {
            let folder = self.lab.path(RUN).join(&name);
            let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
            let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
            for file in manifest["files"].as_array().unwrap() {
                let path = folder.join(file["name"].as_str().unwrap());
                let bytes =
                    std::fs::metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len();
                assert_eq!(Some(bytes), file["bytes"].as_u64(), "{}", path.display());
            }
        }
    }
}

/// Files of a folder, by name.
pub fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A run in progress.
pub struct Running {
    pub child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: Vec<String>,
}

impl Running {
    /// Reads on until a line contains `part`, which is returned.
    pub fn until(&mut self, part: &str) -> String {
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            self.seen.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
        panic!("the run ended without {part:?}:\n{}\n{}", self.tail(), self.errors());
    }

    /// The end of what it said that is no step.
    fn tail(&self) -> String {
        let lines: Vec<&str> = self.seen.iter().map(String::as_str).filter(|line| !line.starts_with("step ")).collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = std::io::Read::read_to_string(stderr, &mut text);
        }
        text
    }

    /// Signals one of the ranks that mpirun started, or the only process.
    pub fn signal(&self, signal: &str) {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let ranks = std::fs::read_to_string(children).unwrap();
        let process = ranks.split_whitespace().last().map_or(self.child.id().to_string(), str::to_owned);
        assert!(Command::new("kill").args([signal, &process]).status().unwrap().success());
    }

    /// Reads to the end. Standard output is all that was said.
    pub fn ended(mut self) -> Ended {
        for line in self.lines.by_ref() {
            self.seen.push(line.unwrap());
        }
        let mut ended = Ended::of(self.child.wait_with_output().unwrap());
        ended.stdout = self.seen.join("\n");
        ended
    }
}

/// Waits for something that happens beside the run.
pub fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !happened() {
        assert!(Instant::now() < deadline, "waited for {what} in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}
