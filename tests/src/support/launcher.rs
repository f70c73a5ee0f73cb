//! What the launcher's tests share: runs of the real launcher under the real mpirun, with a stand-in for the trainer.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

/// Nobody waits for a test longer.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Nor for the end of a launcher longer than this.
const END: Duration = Duration::from_secs(300);

/// A run's folder and the script of its stand-in.
pub struct Stage {
    pub folder: tempfile::TempDir,
}

impl Stage {
    /// `script` is the stand-in's, in JSON.
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
        // The launcher lets SIGHUP stay ignored, as it is where the tests run under nohup.
        let mut command = Command::new("/usr/bin/env");
        command.arg("--default-signal=HUP").arg(program("arinar-launcher"));
        command.arg("--config").arg(self.path("config.json"));
        command.arg("--trainer").arg(program("arinar-stand-in-trainer")).args(arguments);
        command
    }

    /// Runs the launcher to its end.
    pub fn run(&self, arguments: &[&str]) -> Said {
        Said::by(&mut self.command(arguments))
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

/// A launcher that has ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// Runs the command to its end.
    pub fn by(command: &mut Command) -> Self {
        Self::at_the_end_of(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Waits for the end of a launcher. One that does not come to it is killed, which no test takes for an end in order.
    fn at_the_end_of(child: Child) -> Self {
        let pid = child.id();
        let (ended, watch) = mpsc::channel::<()>();
        let watchdog = thread::spawn(move || {
            if watch.recv_timeout(END) == Err(mpsc::RecvTimeoutError::Timeout) {
                signal(pid, rustix::process::Signal::KILL);
            }
        });
        let output = child.wait_with_output().unwrap();
        drop(ended);
        watchdog.join().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that the launcher said this.
    #[track_caller]
    pub fn says(self, part: &str) -> Self {
        assert!(self.stderr.contains(part), "{part:?} is missing:\n{}", self.stderr);
        self
    }
}

/// A launcher that runs; ends with the test.
pub struct Running {
    pub child: Option<Child>,
    /// What the launcher itself wrote.
    pub log: PathBuf,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Waits until the launcher's log says this; returns the line.
    #[track_caller]
    pub fn says(&self, part: &str) -> String {
        until(part, || {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            log.lines().find(|line| line.contains(part)).map(str::to_owned)
        })
    }

    /// Processes below the launcher.
    pub fn below(&self) -> Vec<Process> {
        below(self.pid())
    }

    /// The process of a rank, once all have come.
    #[track_caller]
    pub fn rank(&self, rank: usize) -> u32 {
        let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
        until(&variable, || {
            let found = self.below().into_iter().find(|process| process.environment.contains(&variable));
            found.map(|process| process.pid)
        })
    }

    #[track_caller]
    pub fn mpirun(&self) -> u32 {
        until("mpirun", || Some(self.below().into_iter().find(|process| process.name == "mpirun")?.pid))
    }

    pub fn wait(mut self) -> Said {
        Said::at_the_end_of(self.child.take().unwrap())
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

/// A process, as /proc shows it.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    pub name: String,
    pub environment: BTreeSet<String>,
}

/// Living processes below one, at any depth.
pub fn below(root: u32) -> Vec<Process> {
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
    let mut family = vec![root];
    let mut found = Vec::new();
    let mut next = 0;
    while next < family.len() {
        let parent = family[next];
        for (pid, _, name) in parents.iter().filter(|entry| entry.1 == parent) {
            family.push(*pid);
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

/// True while the process is there and no zombie.
pub fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}

/// Waits for something.
#[track_caller]
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

/// Waits for something, but not longer than this.
#[track_caller]
pub fn within<T>(time: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < time, "{what}: not within {time:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// A program, built from the sources as they are.
pub fn program(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            // Of the whole workspace: for one package alone features differ, and all would be compiled again.
            .args(["build", "--release", "--quiet", "--workspace", "--bins"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success());
        let deps = std::env::current_exe().unwrap();
        deps.parent().and_then(Path::parent).unwrap().to_owned()
    });
    folder.join(name)
}
