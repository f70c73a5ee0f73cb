//! Runs of the real trainer with checkpoints in a bucket of an in-process S3 server.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Lines},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use crate::s3::S3Server;

use crate::support::trainer::{Lab, ProcessOutput};

/// Path of the run in the lab's folder, where the server stores objects as files.
pub const RUN: &str = "s3/runs/tiny";

/// A lab with an S3 server.
pub struct Cloud {
    pub lab: Lab,
    pub server: S3Server,
    /// `ARINAR_STORE_PATIENCE` of the programs, in seconds. A request may stall for a quarter of it, and uploads run at
    /// low priority.
    pub store_timeout: &'static str,
}

impl Cloud {
    pub fn new() -> Self {
        let lab = Lab::new();
        let server = S3Server::start(&lab.path("s3"));
        server.create_bucket("runs");
        Self { lab, server, store_timeout: "40" }
    }

    /// Returns a cloud whose programs soon give up on an unreachable store.
    pub fn with_short_timeout() -> Self {
        Self { store_timeout: "4", ..Self::new() }
    }

    /// Copies the lab's dataset to a separate bucket, `s3://data`.
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
        variables.push(("ARINAR_STORE_PATIENCE".to_owned(), self.store_timeout.to_owned()));
        variables
    }

    pub fn train(&self, ranks: usize, overrides: &[&str]) -> ProcessOutput {
        ProcessOutput::of(self.command(ranks, overrides).output().unwrap())
    }

    /// Starts a run in the background that only `train.max_steps` ends.
    pub fn start(&self, ranks: usize, overrides: &[&str]) -> Running {
        let mut command = self.command(ranks, &[&["optim.epochs=1000000"], overrides].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { child, lines, output: Vec::new() }
    }

    /// Returns the names of the committed checkpoints in the bucket.
    pub fn stored(&self) -> Vec<String> {
        self.lab.checkpoints(RUN)
    }

    /// Returns the run's folder in the spool.
    pub fn spool(&self) -> PathBuf {
        let mut folders = std::fs::read_dir(self.lab.path("spool")).unwrap();
        folders.next().unwrap().unwrap().path()
    }

    /// Deletes the run's local files, as on a new host.
    pub fn new_machine(&self) {
        let _ = std::fs::remove_dir_all(self.lab.path("spool"));
        let _ = std::fs::remove_dir_all(self.lab.path("logs"));
    }

    /// Asserts that every committed checkpoint in the bucket is complete.
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

/// Returns the sorted names of a folder's files.
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
    output: Vec<String>,
}

impl Running {
    /// Reads lines until one contains `part`; returns that line.
    pub fn wait_for_line(&mut self, part: &str) -> String {
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            self.output.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
        panic!("the run ended without {part:?}:\n{}\n{}", self.tail(), self.errors());
    }

    /// Returns the last lines of the output, without those of steps.
    fn tail(&self) -> String {
        let lines: Vec<&str> =
            self.output.iter().map(String::as_str).filter(|line| !line.starts_with("step ")).collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = std::io::Read::read_to_string(stderr, &mut text);
        }
        text
    }

    /// Sends a signal to one of the ranks that mpirun started, or to the only process.
    pub fn signal(&self, signal: &str) {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let ranks = std::fs::read_to_string(children).unwrap();
        let process = ranks.split_whitespace().last().map_or(self.child.id().to_string(), str::to_owned);
        assert!(Command::new("kill").args([signal, &process]).status().unwrap().success());
    }

    /// Waits until the run exits; returns all its output.
    pub fn wait(mut self) -> ProcessOutput {
        for line in self.lines.by_ref() {
            self.output.push(line.unwrap());
        }
        let mut output = ProcessOutput::of(self.child.wait_with_output().unwrap());
        output.stdout = self.output.join("\n");
        output
    }
}

/// Waits until `condition` holds; `what` describes it in the message of a timeout.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
