//! Helpers of the launcher's tests: runs of the real launcher and `mpirun` with a stand-in for the trainer.
#![allow(clippy::unwrap_used)]

use crate::programs::program;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// Timeout of [`wait_until`].
const TIMEOUT: Duration = Duration::from_secs(120);
/// Time after which a launcher that has not exited is killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(300);

/// A run's folder with a configuration for the stand-in.
pub struct Stage {
    pub folder: tempfile::TempDir,
}

impl Stage {
    /// Creates the folder; `script` is the stand-in's script in JSON.
    pub fn new(script: &str) -> Self {
        let stage = Self { folder: tempfile::tempdir().unwrap() };
        let logs = stage.path("logs");
        std::fs::create_dir(&logs).unwrap();
        let script: serde_json::Value = serde_json::from_str(script).unwrap();
        let config = serde_json::json!({
            "run": {"name": "staged", "log_dir": logs}, "batch": {"global": 8}, "stand_in": script
        });
        std::fs::write(stage.path("config.json"), config.to_string()).unwrap();
        stage
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        // Reset SIGHUP, since the launcher keeps it ignored if the tests run under nohup.
        let mut command = Command::new("/usr/bin/env");
        command.arg("--default-signal=HUP").arg(program("arinar-launcher"));
        command.arg("--config").arg(self.path("config.json"));
        command.arg("--trainer").arg(program("arinar-stand-in-trainer")).args(arguments);
        command
    }

    /// Runs the launcher until it exits.
    pub fn run(&self, arguments: &[&str]) -> LauncherOutput {
        LauncherOutput::of(&mut self.command(arguments))
    }

    /// Starts the launcher.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running { child: Some(command.spawn().unwrap()), log: self.path("logs/ranks/launcher.log") }
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("logs/ranks/{name}.log"))).unwrap_or_default()
    }
}

/// Exit code and output of a launcher.
#[derive(Debug)]
pub struct LauncherOutput {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl LauncherOutput {
    /// Runs the command until it exits.
    pub fn of(command: &mut Command) -> Self {
        Self::collect(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Waits until the launcher exits. A launcher that does not is killed, which no test accepts as an orderly exit.
    fn collect(child: Child) -> Self {
        let pid = child.id();
        let (exited, watch) = mpsc::channel::<()>();
        let watchdog = thread::spawn(move || {
            if watch.recv_timeout(EXIT_TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
                signal(pid, rustix::process::Signal::KILL);
            }
        });
        let output = child.wait_with_output().unwrap();
        drop(exited);
        watchdog.join().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn exited_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that standard error contains `part`.
    #[track_caller]
    pub fn reports(self, part: &str) -> Self {
        assert!(self.stderr.contains(part), "{part:?} is missing:\n{}", self.stderr);
        self
    }
}

/// A running launcher, killed when dropped.
pub struct Running {
    pub child: Option<Child>,
    /// The launcher's own log.
    pub log: PathBuf,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Waits until a line of the launcher's log contains `part`; returns the line.
    #[track_caller]
    pub fn wait_for_log(&self, part: &str) -> String {
        wait_until(part, || {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            log.lines().find(|line| line.contains(part)).map(str::to_owned)
        })
    }

    /// Returns the launcher's descendants.
    pub fn descendants(&self) -> Vec<Process> {
        descendants(self.pid())
    }

    /// Waits for the process of a rank; returns its pid.
    #[track_caller]
    pub fn rank(&self, rank: usize) -> u32 {
        let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
        wait_until(&variable, || {
            let found = self.descendants().into_iter().find(|process| process.environment.contains(&variable));
            found.map(|process| process.pid)
        })
    }

    #[track_caller]
    pub fn mpirun(&self) -> u32 {
        wait_until("mpirun", || Some(self.descendants().into_iter().find(|process| process.name == "mpirun")?.pid))
    }

    pub fn wait(mut self) -> LauncherOutput {
        LauncherOutput::collect(self.child.take().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A process as described in /proc.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    pub name: String,
    pub environment: BTreeSet<String>,
}

/// Returns the living descendants of a process.
pub fn descendants(root: u32) -> Vec<Process> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let (start, rest) = stat.rsplit_once(')').unwrap();
        let words: Vec<&str> = rest.split_whitespace().collect();
        let name = start.split_once('(').unwrap().1.to_owned();
        if words[0] != "Z" {
            parents.push((pid, words[1].parse::<u32>().unwrap(), name));
        }
    }
    let mut queue = vec![root];
    let mut found = Vec::new();
    let mut next = 0;
    while next < queue.len() {
        let parent = queue[next];
        for (pid, _, name) in parents.iter().filter(|entry| entry.1 == parent) {
            queue.push(*pid);
            found.push(Process { pid: *pid, name: name.clone(), environment: environment(*pid) });
        }
        next += 1;
    }
    found
}

fn environment(pid: u32) -> BTreeSet<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Returns true if the process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}

/// Polls `poll` until it returns a value; `what` describes the value in the message of a timeout.
#[track_caller]
pub fn wait_until<T>(what: &str, poll: impl FnMut() -> Option<T>) -> T {
    wait_at_most(TIMEOUT, what, poll)
}

/// Polls like [`wait_until`], with another timeout.
#[track_caller]
pub fn wait_at_most<T>(timeout: Duration, what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(start.elapsed() < timeout, "{what}: not within {timeout:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
